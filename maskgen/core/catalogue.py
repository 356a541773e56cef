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
        summary: first line of its docstring.
        parameters: of the function, or of the class's constructor or dataclass fields, in order.
    """

    name: str
    module: str
    summary: str
    parameters: tuple[str, ...]


@cache
def entries(home: str) -> dict[str, Entry]:
    """The entries of a registry by name.

    Args:
        home: folder and variable of the registry, ``maskgen.models:MODELS``.
    """
    package, variable = home.split(":")
    folder = ROOT.joinpath(*package.split(".")[1:])
    return {entry.name: entry for path in sorted(folder.rglob("*.py")) for entry in _registered(path, variable)}


def _registered(path: Path, variable: str) -> Iterator[Entry]:
    """What a file registers in a registry."""
    text = path.read_text(encoding="utf-8")
    if f"@{variable}.register(" not in text:
        return
    module = ".".join(["maskgen", *path.relative_to(ROOT).with_suffix("").parts])
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for name in _names(node, variable):
                summary = (ast.get_docstring(node) or "").split("\n", 1)[0]
                yield Entry(name, module, summary, _parameters(node))


def _names(node: ast.FunctionDef | ast.ClassDef, variable: str) -> Iterator[str]:
    """The names that the decorators of a definition give it in a registry."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"{variable}.register":
            (name,) = decorator.args
            assert isinstance(name, ast.Constant), f"{ast.unparse(decorator)}: a registered name is written out"
            yield str(name.value)


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, ...]:
    """Names of the parameters, without `self`."""
    if isinstance(node, ast.FunctionDef):
        return tuple(argument.arg for argument in [*node.args.args, *node.args.kwonlyargs])
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _parameters(part)[1:]
    fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
    return tuple(target.id for target in fields if isinstance(target, ast.Name))
