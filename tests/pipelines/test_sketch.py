"""Images with the structure of a sketch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen
from maskgen.core.errors import UserError
from maskgen.core.predictions import Condition
from maskgen.data.base import DATASETS
from maskgen.models.maskgit import MaskGIT
from maskgen.nn.watched_attention import attending, watched_attention
from maskgen.pipelines.sketch import Sketch, edges_of
from maskgen.sample.program import sample
from tests.tiny import FIELD, GENERATOR, SHAPE, VECTORS, generator_checkpoint

picture = DATASETS.build("digits").split("test")[0][0]  # type: ignore[union-attr]
TOKEN = {**GENERATOR, "model": {**GENERATOR["model"], "condition": "token", "condition_place": "middle"}}


def test_attention_maps_are_distributions_and_the_last_agrees_with_the_network_s_own_scores() -> None:
    network = MaskGIT(5, (2, 3), n_classes=4, width=8, depth=2, heads=2, condition="token").eval()
    x, cond = torch.arange(6).remainder(5)[None], Condition(torch.tensor([2]))
    maps = watched_attention(attending(network), lambda: network(x, torch.zeros(1), cond))
    assert [tuple(one.shape) for one in maps] == [(1, 2, 7, 7)] * 2
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(1, 2, 7))
    torch.testing.assert_close(maps[1].mean(1)[:, 0, 1:], network.attention_scores(x, cond))
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("recipe", [GENERATOR, TOKEN])
def test_a_sketch_is_followed_by_seed_and_batch_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", recipe)
    pipeline = maskgen.load_image(str(tmp_path / "model"), device="cpu")
    many = pipeline.from_sketch(picture, 3, ["1"], steps=3, seed=5)
    alone = pipeline.from_sketch(picture, 1, ["1"], steps=3, seed=7, batch_size=1)
    assert torch.equal(many.tokens[2], alone.tokens[0])
    assert many.pixels.shape == (3, *SHAPE)


def test_a_share_of_nothing_masked_keeps_the_sketch(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", GENERATOR)
    pipeline = maskgen.load_image(str(tmp_path / "model"), device="cpu")
    made = pipeline.from_sketch(picture, 2, ["1"], steps=1, most=1 / 64, least=1 / 64)
    assert ((made.tokens != made.tokens.mode(0).values).sum(1) <= 1).all()


def test_edges_are_bright_where_the_picture_changes_and_nowhere_else() -> None:
    flat = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    assert edges_of(flat).max() == 0
    flat[:, :, 4:] = 90
    found = edges_of(flat)
    assert found.shape == flat.shape
    assert found.dtype == torch.uint8
    assert (found[0, :, 3:5] == 255).all()
    assert found[:, :, :3].max() == 0
    assert torch.equal(edges_of(flat.flip(2)), found.flip(2))


@pytest.mark.parametrize("recipe", [FIELD, VECTORS])
def test_a_checkpoint_without_attention_over_tokens_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", recipe)
    with pytest.raises(UserError, match="discrete image tokens"):
        maskgen.load_image(str(tmp_path / "model"), device="cpu").from_sketch(picture, 1)


def test_unknown_arguments_layers_and_options_are_refused(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", GENERATOR)
    pipeline = maskgen.load_image(str(tmp_path / "model"), device="cpu")
    with pytest.raises(UserError, match=r"structur.*structure"):
        Sketch.of(picture, SHAPE, structur=0.5)
    with pytest.raises(UserError, match="structure must lie"):
        Sketch.of(picture, SHAPE, structure=2)
    with pytest.raises(UserError, match="a list of numbers from 0"):
        Sketch.of(picture, SHAPE, layers=7)
    with pytest.raises(UserError, match="layers 0 to 0, got 3"):
        pipeline.from_sketch(picture, 1, steps=1, layers=[3])
    with pytest.raises(UserError, match="--structure is of a sketch"):
        sample(str(tmp_path / "model"), device="cpu", structure=0.5)
    with pytest.raises(UserError, match="--sampler does not go with --sketch"):
        sample(str(tmp_path / "model"), device="cpu", sketch="a.png", sampler="halton")


def test_the_command_writes_the_images(tmp_path: Path) -> None:
    generator_checkpoint(tmp_path / "model", GENERATOR)
    pipeline = maskgen.load_image(str(tmp_path / "model"), device="cpu")
    pipeline(1).images[0].save(tmp_path / "sketch.png")
    sample(
        str(tmp_path / "model"), device="cpu", sketch=str(tmp_path / "sketch.png"), edges=True, structure=0.5, num=2,
        steps=2, output=str(tmp_path / "made.npz"), classes=("3",),
    )  # fmt: skip
    assert (tmp_path / "made.npz").is_file()
