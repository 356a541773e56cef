"""What the package brings along: recipes and zoo checkpoints. Imports nothing heavy, so that lists are instant."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path

from maskgen.core.yaml_reader import read_yaml

INFO = "checkpoint.json"


def recipe_names() -> list[str]:
    """The shipped recipes, as paths under configs/ without ending."""
    return sorted(
        f"{folder.name}/{entry.name.removesuffix('.yaml')}"
        for folder in resources.files("maskgen.configs").iterdir()
        if folder.is_dir() and folder.name != "bench"  # experiments over recipes
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def experiment_names() -> list[str]:
    """The shipped experiments over recipes, as `maskgen bench budget --experiment` takes them."""
    folder = resources.files("maskgen.configs").joinpath("bench")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe."""
    return resources.files("maskgen.configs").joinpath(name + ".yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Its one line."""
    return str(read_yaml(recipe_text(name)).get("summary", ""))


def zoo_names() -> list[str]:
    """The checkpoints that ship with the package."""
    root = resources.files("maskgen.zoo")
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.joinpath(INFO).is_file())


def zoo_path(name: str) -> Path:
    """The directory of a zoo checkpoint."""
    return Path(str(resources.files("maskgen.zoo").joinpath(name)))


def zoo_summary(name: str) -> str:
    """Its one line."""
    return str(json.loads((zoo_path(name) / INFO).read_text(encoding="utf-8")).get("summary", ""))


def parameters_in(weights: Path) -> int:
    """Number of values in a .safetensors file, from its header."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
