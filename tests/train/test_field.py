"""Generators of continuous tokens from training to samples, every masking switch, in one process and two."""

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
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.samplers import FIELD_SAMPLERS
from maskgen.train.program import run
from tests.data.test_latents import autoencoder
from tests.tiny import FIELD, generator_checkpoint, tree

TRAIN: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "warmup": 1, "ema": 0.9, "checkpoint_every": 2, "log_every": 1, "preview_every": 4,
    "validation_rows": 8, "tensorboard": False,
}  # fmt: skip
PHASES = [{"steps": 3, "keep_ratio": 0.25}, {"steps": 1, "keep_ratio": 1.0}]
MASKINGS: dict[str, Any] = {
    "none": "none",
    "naive": "naive",
    "deferred": {"type": "deferred", "depth": 1, "width": 8, "heads": 2},
    "maskdit": {"type": "maskdit", "depth": 1, "width": 8, "heads": 2},
}


def recipe_file(path: Path, masking: Any = "none", train: dict[str, Any] | None = None, **changes: Any) -> Path:
    changed = tree(FIELD, **changes)
    changed["model"] = {**changed["model"], "masking": masking}
    changed["train"] = TRAIN | (train or {})
    path.write_text(yaml.safe_dump(changed))
    return path


@pytest.mark.parametrize("name", MASKINGS)
def test_every_switch_trains_resumes_bit_for_bit_and_samples(name: str, tmp_path: Path) -> None:
    phases = {} if name == "none" else {"phases": PHASES}
    recipe = str(recipe_file(tmp_path / "recipe.yaml", MASKINGS[name], phases))
    run(recipe, [], str(tmp_path / "whole"), device="cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    run(recipe, [], str(tmp_path / "again"), resume=True, device="cpu")
    whole, again = (read_checkpoint(tmp_path / home).tensors("training.safetensors") for home in ("whole", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    made = maskgen.load(str(tmp_path / "whole"), device="cpu")(3)
    assert made.pixels.shape == (3, 1, 8, 8)
    assert made.tokens.shape == (3, 16, 4)
    assert list((tmp_path / "whole" / "samples").glob("*.png"))


def test_flips_are_drawn_and_validation_is_logged(tmp_path: Path) -> None:
    run(str(recipe_file(tmp_path / "r.yaml", train={"flip": True})), [], str(tmp_path / "run"), device="cpu")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/squared_error" in line or "squared_error" in str(line) for line in logged)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_of_an_autoencoder_train_and_sample(
    flip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    autoencoder(tmp_path / "vae")
    tokenizer = {"type": "autoencoder_kl", "source": str(tmp_path / "vae"), "patch": 2}
    recipe = recipe_file(tmp_path / "r.yaml", "naive", {"keep_ratio": 0.5, "flip": flip}, tokenizer=tokenizer)
    run(str(recipe), [], str(tmp_path / "run"), device="cpu")
    assert maskgen.load(str(tmp_path / "run"), device="cpu")(2).tokens.shape == (2, 4, 8)


@pytest.mark.parametrize("name", FIELD_SAMPLERS.names())
def test_any_field_sampler_samples_any_continuous_checkpoint(name: str, command: Any, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", FIELD)
    file = tmp_path / "s.npz"
    options = ("--sampler", name.replace("_", "-"), "--steps", 3, "--guidance", 2, "--output", file)
    code, _, error = command("sample", tmp_path / "model", "--num", 2, *options)
    assert code == 0, error
    assert file.is_file()


def test_the_film_shows_what_each_step_took_for_the_truth(command: Any, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", FIELD)
    code, _, error = command(
        "sample", tmp_path / "model", "--num", 2, "--output", tmp_path / "s.png", "--animate", tmp_path / "f.gif"
    )
    assert code == 0, error
    assert (tmp_path / "f.gif").read_bytes().startswith(b"GIF8")


def test_a_masked_sampler_is_no_choice_and_the_field_samplers_are_named(command: Any, tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", FIELD)
    code, _, error = command("sample", tmp_path / "model", "--sampler", "halton")
    assert code == 2
    assert "choose from ddim, ddpm, dpm" in error


def test_a_sample_of_a_field_depends_on_its_own_seed_and_class_only(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", FIELD)
    pipeline = maskgen.load(str(tmp_path / "model"), device="cpu")
    many = pipeline(5, ["3", "7"], seed=5, guidance=1.5)
    alone = pipeline(1, ["7"], seed=5 + 3, guidance=1.5)
    assert torch.allclose(many.tokens[3], alone.tokens[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"type": "pixels"}}, "its tokens are discrete, model dit needs continuous"),
        ({"process": "absorbing", "sampler": "maskgit"}, "model dit needs gaussian, not absorbing"),
        ({"model": {"type": "maskgit"}}, "model maskgit needs absorbing or state_dependent, not gaussian"),
        ({"sampler": "maskgit"}, "unknown sampler 'maskgit'"),
        ({"objective": "masked_tokens"}, "dit is trained by denoising"),
        ({"train": {"keep_ratio": 0.5}}, "masking none drops no tokens"),
        ({"model": {"type": "dit", "has_variance": True}}, "needs process.steps of at least 2"),
        (
            {
                "process": {"type": "gaussian", "target": "edm", "scale": "exploding", "schedule": "log_normal"},
                "objective": {"type": "denoising", "weight": {"type": "edm", "sigma_data": 0.9}},
            },
            "its sigma_data is 0.9, the process has 0.5",
        ),
        (
            {"objective": {"type": "denoising", "keep_spread": 0.2}},
            "objective.keep_spread: 0.2 has no effect",
        ),
        (
            {"objective": {"type": "denoising", "reconstruction_weight": 0.2}},
            "network reconstructs nothing",
        ),
        (
            {"objective": {"type": "denoising", "label_dropout": 0}, "guidance": {"scale": 2}},
            "guidance.scale: 2.0 needs a null label that was trained",
        ),
        (
            {
                "process": {"type": "gaussian", "target": "eps"},
                "model": {"type": "dit", "masking": "maskdit"},
            },
            "eps says nothing of x_0",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(changes)


def built(changes: dict[str, Any]) -> None:
    """All that can be wrong with a recipe before its data are there, and its objective."""
    recipe = parse_recipe(tree(FIELD, **changes))
    recipe.build_objective(recipe.build_tokenizer((1, 8, 8)).vocab_size)


def test_the_sampler_of_a_gaussian_recipe_is_dpm_unless_it_says_otherwise() -> None:
    plain = {key: value for key, value in FIELD.items() if key != "sampler"}
    assert parse_recipe(plain).sampler == "dpm"
