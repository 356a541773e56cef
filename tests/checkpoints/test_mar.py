"""The public weights of MAR and eMIGM, by their names and shapes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.checkpoints.convert.conversion import run
from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.mar import HEADS, SIZES, emigm, emigm_spec, mar, mar_spec
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.models import MODELS
from maskgen.recipes.load import load_recipe, parse_recipe

GOLDEN = Path(__file__).parents[1] / "golden"
EVERY = pytest.mark.parametrize(
    ("name", "convert", "spec"), [("mar", mar, mar_spec), ("emigm", emigm, emigm_spec)], ids=["mar", "emigm"]
)


def published(name: str) -> dict[str, Tensor]:
    """All tensors of the public B, without their numbers."""
    rows = (line.split("\t") for line in (GOLDEN / f"{name}_base.txt").read_text().splitlines())
    return {row[0]: torch.empty(ast.literal_eval(row[1]), device="meta") for row in rows}


def small() -> dict[str, Tensor]:
    """A public file of the least published width with few blocks and tokens, numbers included."""
    generator, kept = torch.Generator().manual_seed(0), {}
    for key, value in published("mar").items():
        place = [part for part in key.split(".") if part.isdigit()]
        if ("_blocks" in key) and int(place[0]) > 0:
            continue
        cut = {768: 448, 3072: 2 * 896, 2304: 3 * 448, 1024: 16, 2048: 32, 320: 6, 256: 4, 1000: 3}
        shape = [cut.get(n, n) for n in value.shape]
        if key == "diffloss.net.time_embed.mlp.0.weight":
            shape = [16, 256]
        if "res_blocks" in key and "adaLN" in key:
            shape[0] = 48
        kept[key] = torch.randn(shape, generator=generator)
    return kept


@EVERY
def test_every_public_tensor_is_taken_and_every_parameter_filled(
    name: str, convert: Callable[..., dict[str, Tensor]], spec: Callable[..., dict[str, Any]]
) -> None:
    state = published(name)
    ours = convert(state)
    with torch.device("meta"):
        network = MODELS.build(spec(state), vocab_size=0, token_width=16, grid=(16, 16), n_classes=1000)
    wanted = network.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in wanted.items()}
    twice = state["fake_latent"].numel() if name == "emigm" else 0
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in state.values()) - twice


def test_every_number_is_where_its_part_is() -> None:
    state = small()
    ours = mar(state)
    assert torch.equal(ours["encoder.blocks.0.mlp_norm.weight"], state["encoder_blocks.0.norm2.weight"])
    assert torch.equal(ours["decoder.blocks.0.attention.qkv.bias"], state["decoder_blocks.0.attn.qkv.bias"])
    assert torch.equal(ours["null"], state["fake_latent"][0])
    assert torch.equal(ours["head_positions"], state["diffusion_pos_embed_learned"][0])
    assert torch.equal(ours["head.net.blocks.0.expand.weight"], state["diffloss.net.res_blocks.0.mlp.0.weight"])
    assert torch.equal(ours["head.net.head.out.bias"], state["diffloss.net.final_layer.linear.bias"])
    assert torch.equal(ours["decoder.project.weight"], state["decoder_embed.weight"])


def test_a_tensor_of_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"pos_embed is no tensor of a MAR"):
        mar({"pos_embed": torch.zeros(1)})
    with pytest.raises(UserError, match=r"z_proj\.weight .* is missing"):
        mar_spec({})
    with pytest.raises(UserError, match="a width of 8 was never published"):
        mar_spec(small() | {"z_proj.weight": torch.zeros(8, 16)})


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_training_file_becomes_a_checkpoint(tmp_path: Path, weights: Literal["ema", "model"]) -> None:
    state = small()
    other = {key: value + 1 for key, value in state.items()}
    file = tmp_path / "checkpoint-last.pth"
    torch.save({"model": state, "model_ema": other, "epoch": 3}, file)
    checkpoint = read_checkpoint(run(str(file), str(tmp_path / "out"), weights=weights))
    assert len(checkpoint.classes) == 3
    assert checkpoint.recipe.model == mar_spec(state)
    tensors = mar(other if weights == "ema" else state)
    assert torch.equal(checkpoint.tensors()["labels.weight"], tensors["labels.weight"])


def emigm_file() -> dict[str, Tensor]:
    """A small file of eMIGM: the mask token (1, D) is also the token of no class."""
    state = small()
    shared = state["mask_token"][0]
    return state | {"mask_token": shared, "fake_latent": shared}


def test_a_file_of_the_other_layout_is_refused_in_one_sentence_and_recognised_without_one(tmp_path: Path) -> None:
    for name, other, state in (("mar", "emigm", small()), ("emigm", "mar", emigm_file())):
        file = tmp_path / f"{name}.pth"
        torch.save(state, file)
        with pytest.raises(UserError, match=f"in the layout of {name}, not of {other}; use --layout {name}"):
            run(str(file), str(tmp_path / "out"), other)
        checkpoint = read_checkpoint(run(str(file), str(tmp_path / name)))
        assert f"--layout {name}" in str(checkpoint.info["command"])
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"fit none of the layouts .*dit, .*; it holds 1 tensors: a \(1,\)"):
        run(str(file), str(tmp_path / "out"))


def test_tokens_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    state = small()
    state |= {"z_proj.weight": torch.zeros(448, 32), "diffloss.net.final_layer.linear.weight": torch.zeros(64, 16)}
    state |= {
        "diffloss.net.final_layer.linear.bias": torch.zeros(64),
        "diffloss.net.input_proj.weight": torch.zeros(16, 32),
    }
    torch.save(state, tmp_path / "dcae.pth")
    with pytest.raises(UserError, match=r"tokens of 32 numbers in a grid .* the tokenizer xwen99/mar-vae-kl16 has 16"):
        run(str(tmp_path / "dcae.pth"), str(tmp_path / "out"))


def sized(width: int) -> dict[str, torch.Tensor]:
    """The tensors of a MAR that tell its sizes."""
    shapes = {
        "diffloss.net.res_blocks.0.in_ln.weight": (16,), "encoder_blocks.0.norm1.weight": (width,),
        "z_proj.weight": (width, 16), "diffloss.net.cond_embed.weight": (16, width), "class_emb.weight": (10, width),
        "encoder_pos_embed_learned": (1, 8, width), "diffusion_pos_embed_learned": (1, 4, width),
    }  # fmt: skip
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_recipe_is_that_of_the_size_and_has_its_heads_and_guidance() -> None:
    scales = {}
    for layout, widths in (("mar", (768, 1024, 1280)), ("emigm", tuple(SIZES))):
        for width in widths:
            recipe = parse_recipe(CONVERTERS.build(layout).target(Published(sized(width))).recipe)
            assert isinstance(recipe.model, dict)
            assert (recipe.model["width"], recipe.model["heads"]) == (width, HEADS[width]), recipe.summary
            scales[layout, width] = recipe.guidance.scale
    assert [scales["mar", width] for width in (768, 1024, 1280)] == [2.9, 3.0, 3.2]


def test_a_file_of_emigm_at_512_pixels_gets_its_autoencoder_and_interval(tmp_path: Path) -> None:
    state = emigm_file() | {
        "z_proj.weight": torch.zeros(448, 32), "diffloss.net.final_layer.linear.weight": torch.zeros(64, 16),
        "diffloss.net.final_layer.linear.bias": torch.zeros(64), "diffloss.net.input_proj.weight": torch.zeros(16, 32),
    }  # fmt: skip
    torch.save(state, tmp_path / "emigm.pth")
    recipe = read_checkpoint(run(str(tmp_path / "emigm.pth"), str(tmp_path / "out"))).recipe
    assert recipe.tokenizer == load_recipe("image/imagenet-emigm-b-512").tokenizer
    assert recipe.guidance.interval == (0.15, 0.35)
