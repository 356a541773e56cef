"""Generators of masked vectors from training to samples and scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import maskgen
from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.train.program import run
from tests.tiny import VECTORS, generator_checkpoint, tree

TRAIN: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "warmup": 1, "ema": 0.9, "checkpoint_every": 2, "log_every": 1, "preview_every": 4,
    "validation_rows": 8, "tensorboard": False,
}  # fmt: skip


@pytest.mark.parametrize(("encode_visible", "ratio_per"), [(True, "sample"), (True, "batch"), (False, "sample")])
def test_mar_trains_resumes_bit_for_bit_and_samples(encode_visible: bool, ratio_per: str, tmp_path: Path) -> None:
    content = tree(VECTORS, objective={"type": "token_diffusion", "ratio_per": ratio_per}, train=TRAIN)
    content["model"]["encode_visible"] = encode_visible
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = str(tmp_path / "recipe.yaml")
    run(recipe, [], str(tmp_path / "whole"), device="cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    run(recipe, [], str(tmp_path / "again"), resume=True, device="cpu")
    whole, again = (read_checkpoint(tmp_path / home).tensors("training.safetensors") for home in ("whole", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    made = maskgen.load(str(tmp_path / "whole"), device="cpu")(3)
    assert made.pixels.shape == (3, 1, 8, 8)
    assert made.tokens.shape == (3, 16, 4)
    assert not made.tokens.isnan().any()
    assert list((tmp_path / "whole" / "samples").glob("*.png"))


def test_a_sample_depends_on_its_own_seed_and_class_only(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", VECTORS)
    pipeline = maskgen.load(str(tmp_path / "model"), device="cpu")
    many = pipeline(5, ["3", "7"], seed=5, guidance=1.5)
    alone = pipeline(1, ["7"], seed=5 + 3, guidance=1.5)
    assert torch.allclose(many.tokens[3], alone.tokens[0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sampler", "maskgit"), "continuous"),
        (("--temperature", "0.5"), "deterministic"),
        (("head=dmp",), "ddpm"),
        (("--guidance-interval", "0.5,0.1"), "LOW,HIGH"),
        (("--guidance-interval", "0.5"), "LOW,HIGH"),
        (("--guidance-interval", "0.1,0.5"), "guidance is off, its scale is 1"),
    ],
)
def test_what_cannot_be_sampled_is_said_in_a_line(
    options: tuple[str, ...], words: str, command: Any, tmp_path: Path
) -> None:
    generator_checkpoint(tmp_path / "model", VECTORS)
    code, _, error = command("sample", tmp_path / "model", "--num", 1, *options, "--output", tmp_path / "s.npz")
    assert code == 2
    assert words in error
    assert len(error.strip().splitlines()) <= 2


def test_a_report_counts_passes_of_the_network_and_of_the_head(
    command: Any, digits_judge: Path, tmp_path: Path
) -> None:
    generator_checkpoint(tmp_path / "model", VECTORS)
    found = {}
    for interval in ("0,0", "0,1"):
        options = ("--guidance", 2, "--guidance-interval", interval, "--sampler", "mar", "--steps", 4)
        report = tmp_path / f"{interval}.json"
        code, _, error = command(
            "evaluate", tmp_path / "model", "--num", 8, "--protocol", digits_judge, *options,
            "head={type: ddpm, steps: 5}", "--output", report,
        )  # fmt: skip
        assert code == 0, error
        found[interval] = {one["name"]: one["value"] for one in json.loads(report.read_text())["others"]}
    assert [found[interval]["nfe_per_sample"] for interval in found] == [4, 8]
    assert [found[interval]["nfe_scheduled"] for interval in found] == [4, 8]
    assert [found[interval]["head_nfe_per_token"] for interval in found] == [5, 5]
