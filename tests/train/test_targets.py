"""Masked autoencoders with targets of their own, from training to a resumed run, a teacher's pupil and a probe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskgen.checkpoints.checkpoint import CheckpointError, load_model, read_checkpoint
from maskgen.train.program import run

SIZES = {"width": 8, "depth": 1, "heads": 2}
RECIPE: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "patches", "size": 2},
    "process": {"type": "absorbing", "schedule": {"type": "fixed", "ratio": 0.75}},
    "model": {"type": "mae", **SIZES, "decoder": {"type": "joint", **SIZES}},
    "sampler": {"type": "masked", "order": "random", "steps": 1},
    "train": {
        "steps": 4, "batch_size": 4, "accumulate": 2, "warmup": 1, "ema": 0.9, "checkpoint_every": 2, "log_every": 1,
        "preview_every": 0, "validation_rows": 8, "tensorboard": False,
    },
}  # fmt: skip


def trained(home: Path, target: dict[str, Any], resume: bool = False) -> Path:
    """The directory of a run with a target, which is resumed if it is there."""
    home.mkdir(exist_ok=True, parents=True)
    recipe = home.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump({**RECIPE, "objective": {"type": "masked_regression", "target": target}}))
    run(str(recipe), [], str(home), resume=resume, device="cpu")
    return home


def test_teachers_are_restored_bit_for_bit_and_are_not_in_the_weights_for_use(tmp_path: Path) -> None:
    target = {"type": "clusters", "n": 3, "decay": 0.5}
    whole = trained(tmp_path / "whole", target)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-4")
    trained(again, target, resume=True)
    first, second = (read_checkpoint(home).tensors("training.safetensors") for home in (whole, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "objective.target.prototypes" in first
    checkpoint = read_checkpoint(whole)
    assert not any(key.startswith("objective.") for key in checkpoint.tensors())
    assert checkpoint.info["target_width"] == 3
    assert load_model(checkpoint)[0].head.out_features == 3  # type: ignore[union-attr]


def test_a_pupil_learns_from_a_checkpoint_and_one_that_has_no_features_is_refused(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher", {"type": "hog"})
    pupil = trained(tmp_path / "pupil", {"type": "teacher", "checkpoint": str(teacher)})
    assert read_checkpoint(pupil).info["target_width"] == SIZES["width"]
    with pytest.raises(CheckpointError, match="is for images"):
        trained(tmp_path / "codes", {"type": "codes", "checkpoint": "fashion-vq"})
