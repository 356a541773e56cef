"""What the package registers, read from its source: names and summaries without importing the parts (or torch).

A part registers itself with a decorator, ``@MODELS.register("maskgit")``. The folder of a registry is scanned for these
decorators, so a new part is one new file, and the command line lists parts without importing them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Entry:
    """A registered class or function.

    Attributes:
        name: as recipes and the command line write it.
        module: where it is defined.
        doc: its docstring.
        parameters: of the function, or of the class's constructor or dataclass fields, in order.
        defaults: source text of the parameters' defaults; parameters without one are missing.
        texts: the texts that the body of a class assigns to names.
    """

    name: str
    module: str
    doc: str
    parameters: tuple[str, ...]
    defaults: dict[str, str]
    texts: dict[str, str]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.split("\n", 1)[0]


@cache
def entries(home: str) -> dict[str, Entry]:
    """The entries of a registry by name.

    Args:
        home: folder and variable of the registry, ``maskgen.models:MODELS``.
    """
    folder = folder_of(home.split(":")[0])
    return {entry.name: entry for path in sorted(folder.rglob("*.py")) for entry in _registered(path, home)}


def folder_of(package: str) -> Path:
    """Where the files of a package are: below ``maskgen/``, or beside it for a program of a source checkout."""
    inside = ROOT.joinpath(*package.split(".")[1:])
    return inside if inside.is_dir() else ROOT.parent.joinpath(*package.split(".")[1:])


def _registered(path: Path, home: str) -> Iterator[Entry]:
    """What a file registers in a registry."""
    package, variable = home.split(":")
    text = path.read_text(encoding="utf-8")
    if f"@{variable}.register(" not in text:
        return
    module = ".".join([package, *path.relative_to(folder_of(package)).with_suffix("").parts])
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for name in _names(node, variable):
                yield Entry(name, module, ast.get_docstring(node) or "", *_parameters(node), _texts(node))


def _names(node: ast.FunctionDef | ast.ClassDef, variable: str) -> Iterator[str]:
    """The names that the decorators of a definition give it in a registry."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"{variable}.register":
            (name,) = decorator.args
            assert isinstance(name, ast.Constant), f"{ast.unparse(decorator)}: a registered name is written out"
            yield str(name.value)


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the parameters, without `self`, and their defaults."""
    if isinstance(node, ast.FunctionDef):
        return _of_function(node)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            names, defaults = _of_function(part)
            return names[1:], defaults
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    fields = [part for part in fields if not ast.unparse(part.annotation).startswith("ClassVar")]
    values = {ast.unparse(part.target): part.value for part in fields}
    return tuple(values), {name: ast.unparse(value) for name, value in values.items() if value is not None}


def _texts(node: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    """`name = "text"` in the body of a class."""
    assigned = [part for part in node.body if isinstance(part, ast.Assign)] if isinstance(node, ast.ClassDef) else []
    pairs = [(ast.unparse(part.targets[0]), part.value) for part in assigned]
    return {
        name: value.value for name, value in pairs if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _of_function(node: ast.FunctionDef) -> tuple[tuple[str, ...], dict[str, str]]:
    given = [*node.args.posonlyargs, *node.args.args]
    late = given[len(given) - len(node.args.defaults) :]
    pairs = [
        *zip(late, node.args.defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    names = tuple(argument.arg for argument in [*given, *node.args.kwonlyargs])
    return names, {argument.arg: ast.unparse(value) for argument, value in pairs if value is not None}
