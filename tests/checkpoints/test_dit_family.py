"""The public weights of DiT, MDTv2 and MaskDiT, by their names and shapes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.checkpoints.convert.dit import dit, dit_spec
from maskgen.checkpoints.convert.maskdit import maskdit, maskdit_spec
from maskgen.checkpoints.convert.mdtv2 import mdtv2, mdtv2_spec
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.nn.embeddings import sincos_2d
from maskgen.tokenizers.image.patches import patchify, unpatchify

Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
LAYOUTS: list[tuple[str, Convert, Callable[[Mapping[str, Tensor]], dict[str, Any]], tuple[str, ...]]] = [
    ("dit_xl2", dit, dit_spec, ("pos_embed",)),
    ("mdtv2_s2_decode6", mdtv2, mdtv2_spec, ("relative_position_index",)),
    ("mdtv2_b2_decode4", mdtv2, mdtv2_spec, ("relative_position_index",)),
    ("mdtv2_b2_decode6", mdtv2, mdtv2_spec, ("relative_position_index",)),
    ("mdtv2_xl2_decode4", mdtv2, mdtv2_spec, ("relative_position_index",)),
    ("maskdit_xl2", maskdit, maskdit_spec, ("pos_embed",)),
]
every_layout = pytest.mark.parametrize(
    ("name", "convert", "spec", "computed"), LAYOUTS, ids=[row[0] for row in LAYOUTS]
)


def published(name: str) -> dict[str, Tensor]:
    """All tensors of a public file, without their numbers."""
    lines = (Path(__file__).parents[1] / "golden" / f"{name}.txt").read_text().splitlines()
    rows = (line.split("\t") for line in lines)
    state = {row[0].removeprefix("model."): torch.empty(ast.literal_eval(row[1]), device="meta") for row in rows}
    return {name: value.long() if name.endswith("_index") else value for name, value in state.items()}


def network(spec: dict[str, Any], device: str = "meta", grid: tuple[int, int] = (16, 16), n_classes: int = 1000) -> Any:
    with torch.device(device):
        return MODELS.build(spec, token_width=16, grid=grid, n_classes=n_classes)


@every_layout
def test_every_public_tensor_is_taken_and_every_parameter_filled(
    name: str, convert: Convert, spec: Callable[..., dict[str, Any]], computed: tuple[str, ...]
) -> None:
    state = published(name)
    ours = convert(state)
    wanted = network(spec(state)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in wanted.items()}
    taken = sum(value.numel() for key, value in state.items() if not key.endswith(computed))
    added = 1152 if name == "maskdit_xl2" else 0  # the row for no class
    assert sum(value.numel() for value in ours.values()) == taken + added


def test_decoder_depths_are_counted() -> None:
    found = {name: spec(published(name)) for name, _, spec, _ in LAYOUTS}
    assert [found[name]["masking"]["depth"] for name in list(found)[1:]] == [6, 4, 6, 4, 8]
    assert [row["depth"] for row in found.values()] == [28, 12, 12, 12, 28, 28]
    assert [row.get("has_variance", False) for row in found.values()] == [True] * 5 + [False]


@cache
def filled(name: str) -> dict[str, Tensor]:
    """The tensors of a public file, every number of all another one."""
    state, first = {}, 0
    for key, value in published(name).items():
        state[key] = torch.arange(first, first + value.numel(), dtype=torch.float64).mul(1e-8).float().view(value.shape)
        first += value.numel()
    return state


def test_every_number_of_mdtv2_is_where_its_part_is() -> None:
    state = filled("mdtv2_s2_decode6")
    ours = mdtv2(state)
    assert torch.equal(ours["trunk.encoder_blocks.3.join.weight"], state["en_outblocks.0.skip_linear.weight"])
    assert torch.equal(ours["trunk.encoder_blocks.2.block.attention.out.bias"], state["en_inblocks.2.attn.proj.bias"])
    table = "attn.rel_pos_bias.relative_position_bias_table"
    assert torch.equal(ours["trunk.decoder_blocks.5.bias.weight"], state[f"de_blocks.5.{table}"])
    assert torch.equal(ours["trunk.side_block.block.mlp.expand.weight"], state["sideblocks.0.mlp.fc1.weight"])
    assert torch.equal(ours["trunk.decoder_positions"], state["decoder_pos_embed"][0])
    network(mdtv2_spec(state), "cpu").load_state_dict(ours)


def test_the_patch_embedding_is_the_published_convolution() -> None:
    latents, weight = Rng.stream(1).normal((2, 4, 6, 6)), Rng.stream(0).normal((384, 4, 2, 2))
    state = filled("mdtv2_s2_decode6") | {"x_embedder.proj.weight": weight}
    by_convolution = F.conv2d(latents, weight, stride=2).flatten(2).mT
    ours = F.linear(patchify(latents, 2), mdtv2(state)["embedding.weight"])
    torch.testing.assert_close(ours, by_convolution, atol=1e-5, rtol=1e-5)


def test_the_head_puts_mean_and_variance_where_the_published_one_does() -> None:
    state, x = filled("mdtv2_s2_decode6"), Rng.stream(1).normal((2, 9, 384))
    theirs = F.linear(x, state["final_layer.linear.weight"], state["final_layer.linear.bias"])
    image = theirs.view(2, 3, 3, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(2, 8, 6, 6)  # (p, q, c) -> channels first
    ours = mdtv2(state)
    answer = F.linear(x, ours["trunk.head.out.weight"], ours["trunk.head.out.bias"])
    for half, channels in zip(answer.chunk(2, -1), image.chunk(2, 1), strict=True):
        torch.testing.assert_close(unpatchify(half, (3, 3), 2), channels)


def test_no_class_is_a_row_of_zeros_where_it_was_no_column() -> None:
    state = {"y_embedder.embedding_table.weight": Rng.stream(0).normal((8, 3)), "mask_token": torch.zeros(1, 1, 8)}
    state |= {key: sincos_2d((2, 2), 8)[None] for key in ("pos_embed", "decoder_pos_embed")}
    table = maskdit(state)["labels.weight"]
    assert torch.equal(table[:3], state["y_embedder.embedding_table.weight"].mT)
    assert not table[3].any()


def test_a_tensor_of_another_network_is_refused() -> None:
    for convert, positions in ((dit, ["pos_embed"]), (maskdit, ["pos_embed", "decoder_pos_embed"]), (mdtv2, [])):
        state = {key: sincos_2d((2, 2), 8)[None] for key in positions}
        with pytest.raises(UserError, match=r"norm1\.weight is no tensor of a"):
            convert(state | {"blocks.0.norm1.weight": torch.zeros(1)})


def test_other_positions_than_ours_are_refused() -> None:
    with pytest.raises(UserError, match="holds other positions"):
        dit({"pos_embed": torch.zeros(1, 16, 8)})
    with pytest.raises(UserError, match="pos_embed is missing"):
        dit({})


def test_a_width_that_was_never_published_is_refused() -> None:
    with pytest.raises(UserError, match="a width of 8 was never published"):
        dit_spec({"x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)})
