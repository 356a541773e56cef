"""Parameters spread over two processes on the CPU (FSDP 2, gloo), started as torchrun does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from maskgen.checkpoints.checkpoint import MODEL, TRAINING, read_checkpoint, write_checkpoint
from maskgen.core.rng import Rng
from maskgen.recipes.load import parse_recipe
from maskgen.train.program import run
from tests import tiny
from tests.train.test_distributed import COMMON, losses, torchrun

pytestmark = pytest.mark.slow

SMALL = ["model.width=16", "model.depth=2", "model.heads=2", "train.steps=6", "train.checkpoint_every=2"]
MASKGIT = ("digits-maskgit", [*SMALL, "train.ema=0.9", "train.accumulate=2", "train.keep_checkpoints=3"])
MUON = (
    "image/fashion-dit",
    ["data=digits", "tokenizer.size=2", *SMALL, "train.gradient_checkpointing=true", "train.preview_every=6"],
)
BLOCKS = "model={type: dit, width: 16, depth: 4, heads: 2, masking: {type: %s}}"
MASKED = [
    ("image/fashion-dit", ["data=digits", "tokenizer.size=2", BLOCKS % masking, "train.keep_ratio=0.7"])
    for masking in ("mdt, depth: 2", "deferred, depth: 1", "maskdit, depth: 1, width: 8, heads: 2")
]
IDS = ["adamw", "muon", "asked", "mdt", "defer", "mae"]
ASKED = (
    "digits-maskgit",
    [*SMALL, "train.ema=0.9", "process={type: absorbing, strategy: attention}"],
)


@pytest.fixture(autouse=True)
def _fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")


def spread(monkeypatch: pytest.MonkeyPatch, output: Path, recipe: str, *arguments: str) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        torchrun(output, recipe, *arguments)


@pytest.mark.parametrize(("recipe", "changes"), [MASKGIT, MUON, ASKED, *MASKED], ids=IDS)
def test_spread_parameters_train_and_are_saved_as_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, changes: list[str]
) -> None:
    spread(monkeypatch, tmp_path / "two", recipe, *changes)
    run(recipe, [*COMMON[:-2], *changes], str(tmp_path / "one"), device="cpu")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    first, second = (read_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert second.info["processes"] == 2
    for file in ("model.safetensors", TRAINING):  # averages; raw weights and moments
        one, two = first.tensors(file), second.tensors(file)
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-4, msg=name)
    average, raw = second.tensors(), second.tensors(TRAINING)
    assert any(not torch.equal(average[name], raw[f"model.{name}"]) for name in average)


def test_spread_parameters_go_on_bit_for_bit_and_in_one_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, changes = MASKGIT
    spread(monkeypatch, tmp_path / "whole", recipe, *changes)
    for name in ("parts", "alone"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for step in (4, 6):
            shutil.rmtree(tmp_path / name / f"checkpoint-{step}")
    spread(monkeypatch, tmp_path / "parts", recipe, *changes, "--resume")
    first, second = (read_checkpoint(tmp_path / name).info["files"] for name in ("whole", "parts"))
    assert first[TRAINING] == second[TRAINING]
    assert first["model.safetensors"] == second["model.safetensors"]
    run(recipe, [*COMMON[:-2], *changes], str(tmp_path / "alone"), resume=True, device="cpu")
    assert losses(tmp_path / "alone") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_sharded_low_rank_changes_train_go_on_and_are_saved_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, network = tiny.generator_checkpoint(tmp_path / "first")
    stored = {name: value + 0.1 * Rng.stream(name).normal(value.shape) for name, value in network.state_dict().items()}
    write_checkpoint(tmp_path / "first", parse_recipe(tiny.tree()), {MODEL: stored}, tiny.INFO)
    recipe = tmp_path / "recipe.yaml"
    lora = {"rank": 2, "trained": ["labels.*"]}
    tree = tiny.tree(model={**tiny.GENERATOR["model"], "lora": lora}, start={"checkpoint": str(tmp_path / "first")})
    recipe.write_text(yaml.safe_dump(tree))
    changes = [
        "train.steps=4",
        "train.checkpoint_every=2",
        "train.keep_checkpoints=2",
        "train.ema=0.9",
        "train.lr=0.05",
    ]
    spread(monkeypatch, tmp_path / "two", str(recipe), *changes)
    run(str(recipe), [*COMMON[:-2], *changes], str(tmp_path / "one"), device="cpu")
    first, second = (read_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert {name.split(".")[-3] for name in second.tensors() if name != "labels.weight"} == {"lora_A", "lora_B"}
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    before = {
        name: value.norm() for name, value in read_checkpoint(tmp_path / "two" / "checkpoint-2").tensors().items()
    }
    for name, value in first.tensors().items():
        torch.testing.assert_close(second.tensors()[name], value, rtol=1e-2, atol=2e-4, msg=name)
        assert value.norm() != before[name]
    shutil.rmtree(second.path)
    spread(monkeypatch, tmp_path / "two", str(recipe), *changes, "--resume")
    again = read_checkpoint(tmp_path / "two")
    assert again.info["files"] == second.info["files"]
