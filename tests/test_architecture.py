"""The rules of docs/architecture.md, held over the source itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import get_args

from maskgen.core.devices import DeviceName
from maskgen.data.base import DATASETS
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES
from maskgen.processes import PROCESSES
from maskgen.recipes.schema import Task
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS
from maskgen.samplers.masked.order import ORDERS
from maskgen.tokenizers import TOKENIZERS

ROOT = Path(__file__).parents[1]
HOMES = {"maskgen": ROOT / "maskgen", "maskgen.train": ROOT / "train", "maskgen.sample": ROOT / "sample"}
LAYERS = [
    {"core", "zoo", "configs"},
    {"nn", "schedules", "strategies"},
    {"processes", "tokenizers"},
    {"data", "models", "objectives", "samplers"},
    {"codec", "evaluation", "recipes"},
    {"checkpoints", "cli"},
    {"pipelines"},
    {"train", "sample"},
]
"""Packages of maskgen, lowest layer first. Imports point to a lower layer, or stay inside the package."""

PROGRAMS = ("maskgen.train", "maskgen.sample")
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 320, 40, 8


def sources() -> dict[str, Path]:
    """Module name -> file, of the library and both programs."""
    found = {}
    for package, home in HOMES.items():
        for path in sorted(home.rglob("*.py")):
            parts = path.relative_to(home).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def every_module(rule: Callable[[str], None]) -> Callable[[], None]:
    """A test that holds a rule over all modules: one test, as thousands of them take a minute to collect and report."""

    def test() -> None:
        for module in SOURCES:
            rule(module)

    test.__name__ = test.__qualname__ = rule.__name__
    return test


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> set[str]:
    """What a module imports by statement, absolute: `from maskgen import rng` is `maskgen.core.rng`."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree(module)):
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


def layer_of(module: str) -> int:
    """The layer of a module's package; the modules at the root are above all."""
    package = module.split(".")[1] if module.count(".") else ""
    if package in ("", "__main__"):
        return len(LAYERS)
    fits = [index for index, layer in enumerate(LAYERS) if package in layer]
    assert fits, f"{module} has no layer: give its package one in LAYERS and in the architecture page"
    return fits[0]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a graph that lie on a cycle."""
    left = {node: set(targets) for node, targets in graph.items()}
    while leaves := [node for node, targets in left.items() if not targets & left.keys()]:
        for node in leaves:
            del left[node]
    return sorted(left)


def test_the_sources_are_found() -> None:
    assert {"maskgen", "maskgen.core.rng", "maskgen.samplers.masked.loop", "maskgen.train.loop"} <= set(SOURCES)
    assert "maskgen.core.rng" in imports("maskgen.core.subset")
    assert "maskgen.train.ema" in imports("maskgen.train.state")


@every_module
def test_imports_point_down_only(module: str) -> None:
    for imported in sorted(imports(module) & SOURCES.keys()):
        is_inside = imported.split(".")[:2] == module.split(".")[:2]
        assert is_inside or layer_of(imported) < layer_of(module), f"{module} imports {imported}"


def test_no_module_and_no_folder_imports_itself_by_others() -> None:
    modules = {module: (imports(module) & SOURCES.keys()) - {module} for module in SOURCES}
    assert cycles(modules) == []
    folders: dict[str, set[str]] = {}
    for module, imported in modules.items():
        folders.setdefault(folder_of(module), set()).update(map(folder_of, imported))
    assert cycles({folder: targets - {folder} for folder, targets in folders.items()}) == []
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b", "c"]


def folder_of(module: str) -> str:
    return module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_nothing_is_loose_at_the_root() -> None:
    assert {path.name for path in (ROOT / "maskgen").glob("*.py")} == {"__init__.py", "__main__.py"}


@every_module
def test_programs_are_imported_by_nobody_but_their_siblings(module: str) -> None:
    for imported in imports(module):
        assert program_of(imported) in (None, program_of(module)), f"{module} imports {imported}"


@every_module
def test_siblings_of_a_program_are_imported_relatively(module: str) -> None:
    froms = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom)]
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


KEYED = {"ImagePipeline.__call__", "TextPipeline.__call__", "JointPipeline.__call__", "run"}
"""Functions whose parameters are recipe keys of several entries, or options of a command, named by the caller."""


def functions(node: ast.AST, owner: ast.ClassDef | None = None) -> Iterator[tuple[str, int, bool]]:
    """Name, number of parameters without `self`, and whether they are recipe keys, of every function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            listed = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
            n = len([argument for argument in listed if argument.arg not in ("self", "cls")])
            name = f"{owner.name}.{child.name}" if owner else child.name
            registered = owner if owner is not None and child.name == "__init__" else child
            yield name, n, any(".register(" in ast.unparse(one) for one in registered.decorator_list)
            yield from functions(child)
        else:
            yield from functions(child, child if isinstance(child, ast.ClassDef) else owner)


@every_module
def test_a_function_takes_few_parameters_that_are_no_keys(module: str) -> None:
    for name, n, has_keys in functions(tree(module)):
        assert n <= MAX_PARAMETERS or has_keys or name in KEYED, f"{module}.{name} takes {n} parameters"


@every_module
def test_a_file_is_named_after_what_it_holds(module: str) -> None:
    assert not set(module.split(".")) & {"utils", "util", "helpers", "helper", "misc", "common"}


@every_module
def test_a_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree(module)) or not SOURCES[module].read_text(encoding="utf-8").strip()


@every_module
def test_only_devices_says_cuda(module: str) -> None:
    if module in (
        "maskgen.core.devices",
        "maskgen.cli.options",
    ):  # the command line repeats it, as it must not import torch
        return
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.fullmatch(r"cuda(:\d+)?", node.value), f"{module}:{node.lineno}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), f"{module}:{node.lineno}"


def test_the_command_line_offers_exactly_the_devices_there_are() -> None:
    lists = [ast.unparse(node) for node in ast.walk(tree("maskgen.cli.options")) if isinstance(node, ast.List)]
    assert lists.count(repr(list(get_args(DeviceName)))) == 1
    for module in (name for name in SOURCES if name.startswith("maskgen.cli.")):
        assert not {"torch", "maskgen.core.devices"} & imports(module)


@every_module
def test_only_programs_seed_the_global_stream(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            is_own = name == "np.random" or name.startswith("np.random.RandomState")
            if module == "maskgen.evaluation.metrics.fidelity" and is_own:
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


ADAPTERS = {"maskgen.core.traits", "maskgen.core.check"}
"""Modules that read what a network or part declares, and the default of one that declares nothing."""

FOREIGN = {
    "maskgen.core.registry",  # type hints
    "maskgen.data.image.hub_images",  # features of Hugging Face data sets
    "maskgen.data.image.stream",
    "maskgen.data.text.hub_texts",
    "maskgen.evaluation.metrics.text_quality",  # configurations of Hugging Face models
    "maskgen.evaluation.protocols.backbones",
    "maskgen.models.mdt",  # parameters of FSDP
    "maskgen.tokenizers.text.encoder",
}
"""Modules that look at attributes of other packages' objects."""


@every_module
def test_what_a_part_can_do_is_declared_and_not_probed(module: str) -> None:
    if module in ADAPTERS | FOREIGN:
        return
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_probe = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
            assert not is_probe, f"{module}:{node.lineno}: {ast.unparse(node)}; declare it in NetworkTraits"


def test_checks_builders_and_programs_name_no_registered_part() -> None:
    registries = (MODELS, OBJECTIVES, PROCESSES, TOKENIZERS, DATASETS, SAMPLERS, FIELD_SAMPLERS, ORDERS)
    named = {name for registry in registries for name in registry.names()} - set(get_args(Task))
    modules = {"maskgen.recipes.checks", "maskgen.recipes.build", "maskgen.recipes.load", "maskgen.recipes.cost"}
    for module in SOURCES:
        if module in modules or program_of(module) == "maskgen.train":
            for node in ast.walk(tree(module)):
                is_named = (
                    isinstance(node, ast.Compare)
                    and {
                        part.value
                        for part in ast.walk(node)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str)
                    }
                    & named
                )
                assert not is_named, f"{module}:{node.lineno}: {ast.unparse(node)}"


MAX_ANY, MAX_CAST = 4.4, 0.44
"""Uses of `Any` and `cast` in a thousand lines of the library and the programs."""


def test_the_types_say_what_things_are() -> None:
    counts = {"Any": 0, "cast": 0}
    for module in SOURCES:
        for node in ast.walk(tree(module)):
            counts["Any"] += isinstance(node, ast.Name) and node.id == "Any"
            counts["cast"] += isinstance(node, ast.Call) and ast.unparse(node.func) == "cast"
    thousands = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES.values()) / 1000
    assert counts["Any"] <= MAX_ANY * thousands, counts
    assert counts["cast"] <= MAX_CAST * thousands, counts


SHARED_NAMES = {
    *("load", "load_image", "load_text"),  # the public functions of `maskgen`, and what they call
    "run",  # the entry point of each program
    "Arm",
    "Block",
    "Clock",
    "Cost",
    "Decoder",
    "Encoder",
    "Entry",
    "Ground",
    "Layout",
    "ResidualBlock",
    "Scored",
    "anywhere",
    "build",
    "cached",
    "collect",
    "count",
    "entries",
    "ground_of",
    "measure",
    "printable",
    "recipe_names",
    "spread",
    "table",
}
"""Public names that several modules define; registered parts and commands are named by their registry."""


def test_a_public_name_stands_for_one_thing() -> None:
    homes: dict[str, set[str]] = {}
    for module in SOURCES:
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                decorators = [ast.unparse(one) for one in node.decorator_list]
                if not any(".register(" in one or "command(" in one for one in decorators):
                    homes.setdefault(node.name, set()).add(module)
    twice = {name for name, modules in homes.items() if len(modules) > 1}
    assert twice == SHARED_NAMES, twice ^ SHARED_NAMES
