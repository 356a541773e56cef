"""Training by mask strategies: progress, resume, resolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from maskgen.checkpoints.checkpoint import TRAINING, read_checkpoint
from maskgen.recipes.load import parse_recipe
from maskgen.strategies import STRATEGIES
from maskgen.train.parts import build
from maskgen.train.program import run
from tests.tiny import tree

TINY = [
    *("model.width=8", "model.depth=1", "model.heads=2", "model.has_difficulty=true", "train.batch_size=8"),
    *("train.log_every=1", "train.preview_every=0", "train.validation_rows=8", "train.tensorboard=false"),
    *("train.steps=4", "train.warmup=1", "train.keep_checkpoints=9"),
]


def digits(output: Path, *overrides: str, resume: bool = False) -> Path:
    return run("digits-maskgit", [*TINY, *overrides], str(output), resume, "cpu")


def assert_same_weights(one: Path, other: Path) -> None:
    for file in ("model.safetensors", TRAINING):
        first, second = read_checkpoint(one).tensors(file), read_checkpoint(other).tensors(file)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == [], f"of {file} differ"


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_resumed_run_draws_the_masks_of_the_run_that_was_not_interrupted(name: str, tmp_path: Path) -> None:
    strategy = f"process.strategy={name}"
    digits(tmp_path / "whole", strategy, "train.checkpoint_every=2")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "checkpoint-2").symlink_to(tmp_path / "whole" / "checkpoint-2")
    digits(tmp_path / "part", strategy, "train.checkpoint_every=2", resume=True)
    assert_same_weights(tmp_path / "part" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["train/difficulty"] > 0 for line in lines if "train/loss" in line)
    assert all("validation/difficulty" in line for line in lines if "validation/loss" in line)


def test_masks_are_drawn_on_the_grid_of_the_tokens() -> None:
    recipe = parse_recipe(tree(process={"type": "absorbing", "strategy": "block"}))
    parts = build(recipe, Accelerator(cpu=True))
    assert cast(Any, parts.objective).process.layout.shape == cast(Any, parts.tokenizer).grid == (8, 8)
