"""From a folder of captioned pictures to pictures of a caption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import MODEL as WEIGHTS
from maskgen.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.image.captions import CaptionSettings
from maskgen.data.loader import CounterSampler, batches
from maskgen.recipes.load import load_recipe, parse_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.tokenizers.text.encoder import TextEncoder
from maskgen.train import program
from maskgen.train.parts import build
from tests.captioned import pictures, tiny_encoder
from tests.tiny import generator_checkpoint

Command = Callable[..., tuple[int, str, str]]
CAPTIONS = {f"train/{n}.png": f"a {colour} boat" for n, colour in enumerate(["red", "blue", "the", "red"])} | {
    "test/0.png": "a tree", "test/1.png": "a red car"
}  # fmt: skip
MODEL = {"type": "microdit", "width": 16, "depth": 2, "heads": 2, "n_experts": 2, "multiple_of": 8}


def near(one: Tensor, other: Tensor, atol: float = 1e-3, rtol: float = 1e-3) -> None:
    """Equal but for rounding: noise has a standard deviation of 80, and products of other sizes round otherwise."""
    torch.testing.assert_close(one, other, atol=atol, rtol=rtol)


def recipe_tree(home: Path, **changes: Any) -> dict[str, Any]:
    """A recipe over a folder of its own, with an encoder of its own."""
    if not home.exists():
        pictures(home / "pictures", CAPTIONS)
        tiny_encoder(home / "encoder")
    return {
        "data": {"type": "captioned_folder", "path": str(home / "pictures"), "size": 8},
        "tokenizer": {"type": "patches", "size": 2},
        "captions": {"encoder": str(home / "encoder"), "length": 4},
        "process": {"type": "gaussian", "schedule": "log_normal", "target": "edm", "scale": "exploding"},
        "model": {**MODEL, "masking": {"type": "deferred", "depth": 1}},
        "objective": "denoising",
        "sampler": {"type": "heun", "steps": 3},
        "train": {
            "batch_size": 4, "warmup": 0, "preview_every": 4, "checkpoint_every": 3, "tensorboard": False,
            "phases": [{"steps": 3, "keep_ratio": 0.5}, {"steps": 1}],
        },
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(cache))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run directory, its weights moved so that captions matter."""
    home = tmp_path_factory.mktemp("captions")
    file = home / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_tree(home / "data")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKGEN_CACHE", str(cache))
        checkpoint = read_checkpoint(program.run(str(file), output=str(home / "run"), device="cpu"))
    rng, weights = Rng.stream("weights"), checkpoint.tensors()
    moved = {name: value + 0.5 * rng.normal(value.shape) for name, value in weights.items()}
    info = {key: value for key, value in checkpoint.info.items() if key != "files"}
    write_checkpoint(home / "moved", checkpoint.recipe, {WEIGHTS: moved}, info)
    return home


def test_a_run_remembers_its_captions_and_shows_them(trained: Path) -> None:
    checkpoint = read_checkpoint(trained / "run")
    assert checkpoint.caption_shape == (4, 8)
    assert checkpoint.step == 4
    assert (trained / "run" / "samples" / "step-00000004.png").is_file()
    metrics = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/loss" in line for line in metrics)


@pytest.mark.usefixtures("own_cache")
def test_a_batch_has_each_picture_with_its_own_caption(tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_tree(tmp_path / "data"))
    parts = build(recipe, Accelerator(cpu=True))
    split = recipe.build_data().split("train")
    encoder = TextEncoder(str(tmp_path / "data" / "encoder"), 4)
    by_grey = {int(split[row][0].flatten()[0]): encoder.embed([split.captions[row]])[0] for row in range(len(split))}  # type: ignore[attr-defined]
    rows, pairs = next(batches(parts.train, CounterSampler(len(split), 4, 0)))
    batch = parts.to_batch(rows, pairs, Rng.stream(0))
    assert batch.cond is not None and batch.cond.captions is not None  # noqa: PT018
    assert bool((batch.cond.labels == -1).all())
    for image, x_0, caption in zip(rows, batch.x_0, batch.cond.captions, strict=True):
        near(x_0.flatten()[0], image.flatten()[0] / 127.5 - 1)
        near(caption, by_grey[int(image.flatten()[0])], atol=2e-3)


def test_prompts_are_taken_in_turn_and_matter(trained: Path) -> None:
    pipeline = maskgen.load(str(trained / "moved"), device="cpu")
    both = pipeline(num=4, prompts=["a red boat", "the tree"], seed=3)
    assert both.prompts == ["a red boat", "the tree"] * 2
    assert both.labels is None
    alone = pipeline(num=4, prompts="a red boat", seed=3)
    near(both.tokens[::2], alone.tokens[::2])
    assert not torch.allclose(both.tokens[1::2], alone.tokens[1::2])


def test_a_sample_depends_on_its_seed_and_prompt_alone(trained: Path) -> None:
    pipeline = maskgen.load(str(trained / "moved"), device="cpu")
    prompts = ["a red boat", "the tree", "a car"]
    whole = pipeline(num=5, prompts=prompts, seed=1, guidance=3.0)
    in_parts = pipeline(num=5, prompts=prompts, seed=1, guidance=3.0, batch_size=2)
    near(whole.tokens, in_parts.tokens)
    near(whole.tokens[[2]], pipeline(num=1, prompts="a car", seed=3, guidance=3.0).tokens)


def test_no_prompt_and_an_empty_one_are_the_same_and_not_guided(trained: Path) -> None:
    pipeline = maskgen.load(str(trained / "moved"), device="cpu")
    without = pipeline(num=2, seed=1).tokens
    near(pipeline(num=2, prompts="", seed=1).tokens, without)
    near(pipeline(num=2, prompts="", seed=1, guidance=4.0).tokens, without)
    near(pipeline(num=2, prompts="a tree", seed=1, guidance=0.0).tokens, without)


def test_a_prompt_may_be_a_file_of_embeddings(trained: Path, tmp_path: Path) -> None:
    pipeline, encoder = maskgen.load(str(trained / "moved"), device="cpu"), trained / "data" / "encoder"
    np.save(tmp_path / "p.npy", TextEncoder(str(encoder), 4).embed(["a red boat", "the tree"]).numpy())
    asked = pipeline(num=2, prompts=str(tmp_path / "p.npy"))
    near(asked.tokens, pipeline(num=2, prompts=["a red boat", "the tree"]).tokens)
    np.save(tmp_path / "q.npy", np.zeros((1, 5, 8), np.float32))
    with pytest.raises(UserError, match=r"q.npy' embeds as \(5, 8\).* trained on \(4, 8\)"):
        pipeline(prompts=str(tmp_path / "q.npy"))


def test_an_encoder_that_has_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained / "moved")
    assert checkpoint.recipe.captions is not None
    captions = {**checkpoint.recipe.captions.model_dump(), "encoder": str(tiny_encoder(tmp_path / "other", seed=1))}
    recipe = parse_recipe({**checkpoint.recipe.model_dump(mode="json", exclude_none=True), "captions": captions})
    info = {key: value for key, value in checkpoint.info.items() if key != "files"}
    write_checkpoint(tmp_path / "c", recipe, {WEIGHTS: checkpoint.tensors()}, info)
    with pytest.raises(UserError, match="is not the encoder this checkpoint was trained with"):
        maskgen.load(str(tmp_path / "c"), device="cpu")(num=1, prompts="a tree")


@pytest.mark.usefixtures("own_cache")
def test_a_resumed_run_is_the_one_that_was_not_interrupted(trained: Path, tmp_path: Path) -> None:
    file, whole = trained / "recipe.yaml", read_checkpoint(trained / "run").tensors()
    shutil.copytree(trained / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    resumed = program.run(str(file), output=str(tmp_path / "run"), resume=True, device="cpu")
    for name, value in read_checkpoint(resumed).tensors().items():
        torch.testing.assert_close(value, whole[name], msg=name)


def test_the_command_writes_a_column_for_each_prompt(trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "s.npz"
    options = ("--prompt", "a red boat", "--prompt", "the tree", "--num", 4, "--seed", 5, "--output", out)
    code, _, error = command("sample", trained / "moved", *options)
    assert code == 0, error
    pipeline = maskgen.load(str(trained / "moved"), device="cpu")
    expected = pipeline(num=4, prompts=["a red boat", "the tree"], seed=5).pixels
    assert np.array_equal(np.load(out)["images"], expected.permute(0, 2, 3, 1).numpy())


def test_a_checkpoint_without_captions_takes_no_prompt(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "c")
    with pytest.raises(UserError, match="takes no prompts: it was trained without captions"):
        maskgen.load(str(tmp_path / "c"), device="cpu")(num=1, prompts="a red boat")


@pytest.mark.usefixtures("own_cache")
def test_embeddings_made_elsewhere_train_without_an_encoder(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path / "data")
    array = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float16)
    np.save(tmp_path / "c.npy", array)
    recipe = parse_recipe(tree | {"captions": {"embeddings": str(tmp_path / "c.npy")}})
    parts = build(recipe, Accelerator(cpu=True))
    assert parts.facts()["caption_shape"] == [3, 5]
    batch = parts.to_batch(*parts.train.__getitems__([0, 3]), Rng.stream(0))
    # In the order of all paths, those of test come first.
    assert batch.cond is not None and batch.cond.captions is not None  # noqa: PT018
    assert torch.equal(batch.cond.captions, torch.from_numpy(array[[2, 5]]).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "digits"}, "captions: digits has none; take data captioned_folder"),
        ({"captions": {"length": 3}}, "captions: give an encoder, embeddings or both"),
        ({"captions": {"encoder": "x", "size": 3}}, "captions.size: unknown key; accepted here: embeddings, encoder"),
        ({"captions": {"encoder": "x", "length": 0}}, "captions.length: input should be greater"),
        ({"model": {"type": "dit", "width": 16, "depth": 1, "heads": 2}}, "captions: dit takes none"),
    ],
)
def test_captions_that_nothing_embeds_or_takes_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe_tree(tmp_path / "data", **change))


@pytest.mark.parametrize(
    "change", [{"data": "digits", "captions": None}, {"captions": None}], ids=["classes", "unconditional"]
)
def test_the_network_needs_no_captions(tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = parse_recipe(recipe_tree(tmp_path / "data", **change))
    parts = build(recipe, Accelerator(cpu=True))
    batch = parts.to_batch(*parts.train.__getitems__([0, 1]), Rng.stream(0))
    loss = parts.objective(parts.module, batch, Rng.stream(0), keep_ratio=0.5)
    loss.value.backward()
    assert (batch.cond is None) == (change != {"data": "digits", "captions": None})


def test_the_cost_of_the_published_one_needs_neither_data_nor_the_hub(command: Command) -> None:
    code, out, error = command("cost", "image/micro-dit-xl", "--no-measure")
    assert code == 0, error
    assert "1,165,442,320 parameters" in out
    assert "119.0" in out
    assert load_recipe("micro-dit-xl").captions == CaptionSettings(
        encoder="apple/DFN5B-CLIP-ViT-H-14-378", padding="keep"
    )
