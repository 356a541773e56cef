"""The rules of docs/architecture.md, held over the source itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from maskgen.devices import DeviceName

ROOT = Path(__file__).parents[1]
HOMES = {"maskgen": ROOT / "maskgen", "maskgen.train": ROOT / "train", "maskgen.sample": ROOT / "sample"}
LAYERS = [
    ["maskgen.errors"],
    [
        "maskgen",
        "maskgen.registry",
        "maskgen.rng",
        "maskgen.devices",
        "maskgen.hub",
        "maskgen.files",
        "maskgen.lock",
        "maskgen.shipped",
        "maskgen.zoo",
    ],
    ["maskgen.subset"],
    [
        "maskgen.schedules",
        "maskgen.strategies",
        "maskgen.layers",
        "maskgen.recipe_tree",
        "maskgen.budget",
        "maskgen.manifest",
    ],
    ["maskgen.processes", "maskgen.predictions", "maskgen.tokenizers", "maskgen.encoders", "maskgen.weights"],
    ["maskgen.fields"],
    ["maskgen.heads"],
    ["maskgen.objectives", "maskgen.guidance", "maskgen.samplers", "maskgen.models", "maskgen.data"],
    ["maskgen.eval"],
    ["maskgen.generate"],
    ["maskgen.recipe_checks"],
    ["maskgen.recipe"],
    ["maskgen.checkpoint"],
    ["maskgen.convert", "maskgen.cost"],
    ["maskgen.train", "maskgen.sample"],
    ["maskgen.cli_options"],
    ["maskgen.cli_scores"],
    ["maskgen.cli"],
    ["maskgen.train.__main__", "maskgen.sample.__main__", "maskgen.__main__"],
]
"""Lowest first; a folder is one entry. Imports point to an earlier row, or stay inside the folder."""

PROGRAMS = ("maskgen.train", "maskgen.sample")
MAX_FILE, MAX_FUNCTION = 320, 60


def sources() -> dict[str, Path]:
    """Module name -> file, of the library and both programs."""
    found = {}
    for package, home in HOMES.items():
        for path in sorted(home.rglob("*.py")):
            parts = path.relative_to(home).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


SOURCES = sources()
every_module = pytest.mark.parametrize("module", SOURCES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what is imported for type checkers only is left out."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from statements(child)


def imports(module: str) -> set[str]:
    """What a module imports by statement, absolute: `from maskgen import rng` is `maskgen.rng`."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in statements(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else base for name in names}
    return found


def program_of(module: str) -> str | None:
    return next((program for program in PROGRAMS if f"{module}.".startswith(f"{program}.")), None)


def place(module: str) -> tuple[int, str]:
    """The layer of a module and the entry it belongs to: the longest that fits."""
    fits = [
        (index, entry)
        for index, layer in enumerate(LAYERS)
        for entry in layer
        if module == entry or (entry != "maskgen" and module.startswith(f"{entry}."))
    ]
    assert fits, f"{module} has no layer: give it one in LAYERS and in the architecture page"
    return max(fits, key=lambda fit: len(fit[1]))


def test_the_sources_are_found() -> None:
    assert {"maskgen", "maskgen.rng", "maskgen.samplers.masked", "maskgen.train.loop"} <= set(SOURCES)
    assert "maskgen.rng" in imports("maskgen.subset")
    assert "maskgen.train.ema" in imports("maskgen.train.state")


@every_module
def test_imports_point_down_only(module: str) -> None:
    layer, entry = place(module)
    for imported in sorted(name for name in imports(module) if name.split(".")[0] == "maskgen"):
        other, other_entry = place(imported)
        assert other < layer or other_entry == entry, f"{module} (layer {layer}) imports {imported} (layer {other})"


@every_module
def test_programs_are_imported_by_nobody_but_their_siblings(module: str) -> None:
    for imported in imports(module):
        assert program_of(imported) in (None, program_of(module)), f"{module} imports {imported}"


@every_module
def test_siblings_of_a_program_are_imported_relatively(module: str) -> None:
    froms = [node for node in statements(tree(module)) if isinstance(node, ast.ImportFrom)]
    absolute = {node.module for node in froms if not node.level}
    assert not [name for name in absolute if name and program_of(name)]


@every_module
def test_a_file_fits_its_budget(module: str) -> None:
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@every_module
def test_a_function_fits_its_budget(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{module}.{node.name} has {length} lines"


@every_module
def test_a_file_is_named_after_what_it_holds(module: str) -> None:
    assert not set(module.split(".")) & {"utils", "util", "helpers", "helper", "misc", "common"}


@every_module
def test_a_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree(module)) or not SOURCES[module].read_text(encoding="utf-8").strip()


@every_module
def test_only_devices_says_cuda(module: str) -> None:
    if module in ("maskgen.devices", "maskgen.cli_options"):  # the command line repeats it, as it must not import torch
        return
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.fullmatch(r"cuda(:\d+)?", node.value), f"{module}:{node.lineno}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), f"{module}:{node.lineno}"


def test_the_command_line_offers_exactly_the_devices_there_are() -> None:
    lists = [ast.unparse(node) for node in ast.walk(tree("maskgen.cli_options")) if isinstance(node, ast.List)]
    assert lists.count(repr(list(get_args(DeviceName)))) == 1
    for module in ("maskgen.cli", "maskgen.cli_scores", "maskgen.cli_options"):
        assert not {"torch", "maskgen.devices"} & imports(module)


@every_module
def test_only_programs_seed_the_global_stream(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            is_own = name == "np.random" or name.startswith("np.random.RandomState")
            if module == "maskgen.eval.fidelity" and is_own:
                continue  # a stream of its own: the very permutation that torch-fidelity takes
            is_global = name in ("torch.manual_seed", "torch.seed", "random.seed") or name.startswith(
                ("np.random", "numpy.random")
            )
            assert not is_global or (program_of(module) and name == "torch.manual_seed"), f"{module}: {name}"


@every_module
def test_nothing_is_pickled(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
    }
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
            assert "weights_only=True" in ast.unparse(node), f"{module}:{node.lineno}"


def test_the_package_list_is_complete() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    homes = {**HOMES, "maskgen.configs": ROOT / "configs"}
    assert setup["package-dir"] == {name: home.relative_to(ROOT).as_posix() for name, home in homes.items()}
    on_disk = {
        ".".join([name, *path.parent.relative_to(home).parts])
        for name, home in homes.items()
        for path in home.rglob("*.py")
    }
    assert sorted(setup["packages"]) == sorted(on_disk)


def test_every_package_has_an_init() -> None:
    for home in (*HOMES.values(), ROOT / "configs", ROOT / "tests"):
        for folder in {path.parent for path in home.rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
