"""Converted networks give the numbers of the public code, which `benchmarks/parity/` has run beside ours."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.published import Published
from maskgen.recipes.load import parse_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "parity"
GOLDEN = ROOT / "tests" / "golden" / "parity"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py") if "PARITY = " in path.read_text())
TOLERANCE = 3e-5
"""Of the largest number of an output: what the scripts allow, and the rounding of another processor."""
every_layout = pytest.mark.parametrize("name", NAMES)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script of the folder, which finds the others beside it; forgotten after the test."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for known in [path.stem for path in SCRIPTS.glob("*.py")]:
        monkeypatch.delitem(sys.modules, known, raising=False)
    found = importlib.import_module(name)
    for known in [path.stem for path in SCRIPTS.glob("*.py")]:
        monkeypatch.delitem(sys.modules, known, raising=False)
    return found


def facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


@every_layout
def test_outputs_are_those_of_the_public_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness, parity = module("harness", monkeypatch), module(name, monkeypatch).PARITY
    for output, (largest, scale) in harness.recompute(parity, facts(name)).items():
        assert largest <= TOLERANCE * scale, f"{output} differs by {largest}"


@every_layout
def test_a_script_says_how_it_is_called_and_its_facts_are_few_kilobytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module(name, monkeypatch)
    assert script.PARITY.name == name == facts(name)["layout"]
    assert f"python benchmarks/parity/{name}.py --public DIR" in script.__doc__
    assert (GOLDEN / f"{name}.json").stat().st_size < 20_000


def test_facts_without_a_script_are_none() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(NAMES)


def test_the_rule_of_weights_is_exact_and_never_neutral(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = module("harness", monkeypatch)
    matrix = harness.draw(0, "a.weight", (300, 200))
    assert torch.equal(matrix, harness.draw(0, "a.weight", (300, 200)))
    assert not torch.equal(matrix, harness.draw(0, "b.weight", (300, 200)))
    assert float(matrix.mean()) == pytest.approx(0, abs=1e-3)
    assert float(matrix.std()) == pytest.approx(200**-0.5, rel=0.01)
    assert float(harness.draw(0, "norm.weight", (1000,)).mean()) == pytest.approx(1, abs=0.02)
    assert harness.draw(0, "norm.bias", (1000,)).abs().min() > 0


@pytest.mark.parametrize(
    "name", ["dit", "mdt", "mdtv2", "maskdit", "microdit", "mar", "emigm", "mae", "crossmae", "simmim"]
)
def test_a_file_is_recognised_as_its_layout_alone(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in facts(name)["tensors"].items()}
    found = Published(state)
    assert [layout for layout in CONVERTERS.names() if CONVERTERS.build(layout).recognises(found)] == [name]


@pytest.mark.parametrize(("name", "pixels"), [("dit", 16), ("mdt", 16), ("maskdit", 16)])
def test_a_network_of_512_pixels_gets_data_of_that_size(name: str, pixels: int) -> None:
    shapes = facts(name)["tensors"]
    for key in ("pos_embed", "decoder_pos_embed"):
        if key in shapes:
            shapes[key] = [1, (512 // pixels) ** 2, shapes[key][2]]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    target = CONVERTERS.build(name).target(Published(state))
    assert target.facts.image_shape == (3, 512, 512)
    data: Any = parse_recipe({**target.recipe, "summary": name}).data
    assert data["size"] == 512
