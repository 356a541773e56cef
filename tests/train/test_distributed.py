"""Two processes on the CPU (gloo), started as torchrun does; once by torchrun itself."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.train.program import run
from tests.launch import processes
from tests.tiny import VECTORS

COMMON = [
    *("train.steps=3", "train.batch_size=8", "train.checkpoint_every=3", "train.log_every=1", "train.preview_every=0"),
    *("train.tensorboard=false", "train.validation_rows=8", "--device", "cpu"),
]


def torchrun(output: Path, recipe: str, *arguments: str) -> None:
    processes(2, "maskgen.train", [recipe, *COMMON, *arguments, "--output", output], output.parent / "logs")


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


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


SMALL = ("model.width=16", "model.depth=1", "model.heads=2", "train.steps=6", "train.checkpoint_every=2")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_batch(tmp_path: Path) -> None:
    torchrun(tmp_path / "two", "digits-maskgit", *SMALL)
    options = [*COMMON[:-2], *SMALL]
    run("digits-maskgit", options, str(tmp_path / "one"), device="cpu")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    first, second = (read_checkpoint(tmp_path / name).tensors() for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_contrastive_term_has_its_negatives_in_all_processes(tmp_path: Path) -> None:
    recipe = tmp_path / "mage-c.yaml"
    recipe.write_text(
        "{data: digits, tokenizer: {type: pixels, levels: 5}, "
        "model: {type: mage, width: 16, depth: 1, heads: 2, decoder_depth: 1, dropout: 0, projection: 8}, "
        "objective: {type: masked_tokens, contrastive: {weight: 1.0}}, "
        "process: {type: absorbing, schedule: truncated_normal}, train: {views: {n: 2}, keep_ratio: 0.5}}"
    )
    torchrun(tmp_path / "two", str(recipe))
    run(str(recipe), COMMON[:-2], str(tmp_path / "one"), device="cpu")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    first, second = (read_checkpoint(tmp_path / name).tensors() for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ratio_per", ["sample", "batch"])
def test_a_diffusion_head_is_trained_by_two_processes_as_by_one(ratio_per: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mar.yaml"
    recipe.write_text(yaml.safe_dump(VECTORS | {"objective": {"type": "token_diffusion", "ratio_per": ratio_per}}))
    torchrun(tmp_path / "two", str(recipe))
    run(str(recipe), COMMON[:-2], str(tmp_path / "one"), device="cpu")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    first, second = (read_checkpoint(tmp_path / name).tensors() for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_killed_go_on_bit_for_bit(tmp_path: Path) -> None:
    torchrun(tmp_path / "whole", "digits-maskgit", *SMALL)
    torchrun(tmp_path / "parts", "digits-maskgit", *SMALL, "train.keep_checkpoints=3")
    for step in (4, 6):  # as if killed after step 5: what a kill leaves is the checkpoint before it
        shutil.rmtree(tmp_path / "parts" / f"checkpoint-{step}")
    torchrun(tmp_path / "parts", "digits-maskgit", *SMALL, "train.keep_checkpoints=3", "--resume")
    first, second = (read_checkpoint(tmp_path / name).info["files"] for name in ("whole", "parts"))
    assert first["training.safetensors"] == second["training.safetensors"]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with_and_the_other_way_round(tmp_path: Path) -> None:
    options = [*SMALL, "train.keep_checkpoints=3"]
    torchrun(tmp_path / "two", "digits-maskgit", *options)
    run("digits-maskgit", [*COMMON[:-2], *options], str(tmp_path / "one"), device="cpu")
    for name in ("one", "two"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-cut")
        for step in (4, 6):
            shutil.rmtree(tmp_path / f"{name}-cut" / f"checkpoint-{step}")
    run("digits-maskgit", [*COMMON[:-2], *options], str(tmp_path / "two-cut"), resume=True, device="cpu")
    torchrun(tmp_path / "one-cut", "digits-maskgit", *options, "--resume")
    for name in ("two", "one-cut", "two-cut"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_both_with_one_checkpoint(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = [
        *COMMON,
        *SMALL,
        "train.steps=100000",
        "train.checkpoint_every=100000",
        "--output",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen([*launch, "-m", "maskgen.train", "digits-maskgit", *options], stderr=subprocess.DEVNULL)
    file, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (file.is_file() and file.stat().st_size > 500):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) != 0
    (path,) = (tmp_path / "run").glob("checkpoint-*")
    assert read_checkpoint(path).step < 100_000
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("keep_ratio", [0.7, 1.0])
@pytest.mark.parametrize("masking", ["mdt, depth: 2", "deferred, depth: 1", "maskdit, depth: 1, width: 8, heads: 2"])
def test_processes_wait_for_no_parameter_of_a_masked_network(tmp_path: Path, masking: str, keep_ratio: float) -> None:
    model = f"model={{type: dit, width: 16, depth: 4, heads: 2, masking: {{type: {masking}}}}}"
    ratio = f"train.keep_ratio={keep_ratio}"
    torchrun(
        tmp_path / "run", "image/fashion-dit", "data=digits", "tokenizer.size=2", model, "train.optimizer=adamw", ratio
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    assert all(torch.isfinite(value).all() for value in read_checkpoint(tmp_path / "run").tensors().values())
