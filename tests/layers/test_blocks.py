"""Laws of transformer blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.layers.blocks import Mlp, PostNormBlock, PreNormBlock


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [PostNormBlock(8, 2), PreNormBlock(8, 2), PreNormBlock(8, 2, qk_norm=True)])
def test_a_block_keeps_the_shape(block: nn.Module) -> None:
    assert block(noise(2, 5, 8)).shape == (2, 5, 8)


def test_post_norm_leaves_normalised_tokens() -> None:
    x = PostNormBlock(8, 2)(100 * noise(2, 5, 8))
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(-1, unbiased=False), torch.ones(2, 5))


def test_pre_norm_adds_what_does_not_depend_on_the_scale_of_its_input() -> None:
    block, x = PreNormBlock(8, 2, eps=1e-12), noise(2, 5, 8)
    nn.init.zeros_(block.mlp.contract.weight)
    torch.testing.assert_close(block(10 * x) - 10 * x, block(x) - x, atol=1e-4, rtol=1e-4)


def test_closed_gates_are_the_identity() -> None:
    block, x = PreNormBlock(8, 2, is_modulated=True), noise(2, 5, 8)
    assert torch.equal(block(x, torch.zeros(2, 48)), x)


def test_open_gates_without_shift_and_scale_are_the_plain_block() -> None:
    block, x = PreNormBlock(8, 2, is_modulated=True), noise(2, 5, 8)
    nothing, open_gate = torch.zeros(2, 8), torch.ones(2, 8)
    modulation = torch.cat([nothing, nothing, open_gate, nothing, nothing, open_gate], -1)
    torch.testing.assert_close(block(x, modulation), block(x))


def test_a_row_is_modulated_by_its_own_condition() -> None:
    block, x, modulation = PreNormBlock(8, 2, is_modulated=True), noise(2, 5, 8), noise(2, 48)
    alone = block(x[1:], modulation[1:])
    torch.testing.assert_close(block(x, modulation)[1:], alone)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_the_mlp_is_two_layers_with_the_gelu_asked_for(gelu: str) -> None:
    mlp, x = Mlp(4, 16, gelu=gelu), noise(3, 4)  # type: ignore[arg-type]
    torch.testing.assert_close(mlp(x), mlp.contract(F.gelu(mlp.expand(x), approximate=gelu)))
