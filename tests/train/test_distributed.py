"""Two processes on the CPU (gloo), started by torchrun as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskgen.checkpoint import read_checkpoint

COMMON = [
    *("train.steps=3", "train.batch_size=8", "train.checkpoint_every=3", "train.log_every=1", "train.preview_every=0"),
    *("train.tensorboard=false", "train.validation_rows=8", "--device", "cpu"),
]


def torchrun(output: Path, recipe: str, *arguments: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "maskgen.train", recipe, *COMMON, *arguments, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_resume_and_write_one_run(tmp_path: Path) -> None:
    torchrun(tmp_path / "run", "digits-maskgit", "model.width=16", "model.depth=1", "model.heads=2")
    small = ("model.width=16", "model.depth=1", "model.heads=2", "train.steps=4")
    torchrun(tmp_path / "run", "digits-maskgit", *small, "--resume")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert read_checkpoint(tmp_path / "run").info["processes"] == 2


@pytest.mark.slow
def test_processes_keep_one_codebook_of_latents_that_occur(tmp_path: Path) -> None:
    recipe = tmp_path / "tokenizer.yaml"
    recipe.write_text(
        "{data: digits, tokenizer: {type: vq, codes: 8, dim: 4, width: 8, fine_width: 8, depth: 1}, "
        "objective: reconstruction}"
    )
    torchrun(tmp_path / "run", str(recipe))
    tensors = read_checkpoint(tmp_path / "run").tensors()
    assert torch.isfinite(tensors["quantiser.codebook"]).all()
    assert tensors["quantiser.codebook"].unique(dim=0).shape[0] == 8


@pytest.mark.slow
@pytest.mark.parametrize("keep_ratio", [0.7, 1.0])
def test_processes_wait_for_no_parameter_of_mdt(tmp_path: Path, keep_ratio: float) -> None:
    model = "model={type: dit, width: 16, depth: 4, heads: 2, masking: {type: mdt, depth: 2}}"
    ratio = f"train.keep_ratio={keep_ratio}"
    torchrun(
        tmp_path / "run", "image/fashion-dit", "data=digits", "tokenizer.size=2", model, "train.optimizer=adamw", ratio
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    assert all(torch.isfinite(value).all() for value in read_checkpoint(tmp_path / "run").tensors().values())
