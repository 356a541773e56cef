"""Laws of transformer blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.nn.blocks import Mlp, PostNormBlock, PreNormBlock, TextBlock
from maskgen.nn.embeddings import rotation_1d


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


def text_block(**changes: object) -> TextBlock:
    """A block in which every path is open."""
    torch.manual_seed(0)
    block = TextBlock(8, 2, **changes).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


ROTATION = rotation_1d(torch.arange(5), 4)


def test_a_text_block_is_its_definition() -> None:
    block, x = text_block(), noise(2, 5, 8).double()
    middle = x + block.attention(F.layer_norm(x, (8,), block.attention_norm.weight), ROTATION)
    hidden = F.gelu(block.mlp.expand(F.layer_norm(middle, (8,), block.mlp_norm.weight)), approximate="tanh")
    torch.testing.assert_close(block(x, ROTATION)[0], middle + block.mlp.contract(hidden))


def test_attention_and_norms_of_a_text_block_have_no_bias() -> None:
    biases = {name for name, _ in TextBlock(8, 2, cond_width=3).named_parameters() if name.endswith("bias")}
    assert biases == {"mlp.expand.bias", "mlp.contract.bias", "modulation.bias"}


def test_a_modulated_text_block_starts_as_the_identity() -> None:
    x = noise(2, 5, 8)
    assert torch.equal(TextBlock(8, 2, cond_width=3)(x, ROTATION, cond=noise(2, 3))[0], x)


def test_a_text_block_with_open_gates_and_no_shift_and_scale_is_the_plain_one() -> None:
    modulated, plain, x = text_block(cond_width=3), text_block(), noise(2, 5, 8).double()
    plain.load_state_dict({key: value for key, value in modulated.state_dict().items() if "modulation" not in key})
    assert modulated.modulation is not None
    nn.init.zeros_(modulated.modulation.weight)
    with torch.no_grad():
        modulated.modulation.bias.copy_(torch.tensor([0, 0, 1, 0, 0, 1]).repeat_interleave(8))
    torch.testing.assert_close(modulated(x, ROTATION, cond=noise(2, 3).double())[0], plain(x, ROTATION)[0])


def test_a_row_of_a_text_block_is_modulated_by_its_own_condition() -> None:
    block, x, cond = text_block(cond_width=3), noise(2, 5, 8).double(), noise(2, 3).double()
    together = block(x, ROTATION, cond=cond)[0]
    torch.testing.assert_close(together[1:], block(x[1:], ROTATION, cond=cond[1:])[0])
    assert not torch.allclose(together, block(x, ROTATION, cond=cond.flip(0))[0])


@pytest.mark.parametrize("cond_width", [0, 3])
def test_a_text_block_goes_on_from_a_past_as_if_it_had_seen_the_whole(cond_width: int) -> None:
    block, x = text_block(cond_width=cond_width, qk_norm=True), noise(2, 5, 8).double()
    cond = noise(2, 3).double() if cond_width else None
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    whole, (keys, values) = block(x, ROTATION, "causal", cond)
    past = block(x[:, :3], ROTATION[:3], "causal", cond)[1]
    rest, new = block(x[:, 3:], ROTATION[3:], mask[3:], cond, past)
    torch.testing.assert_close(rest, whole[:, 3:])
    torch.testing.assert_close(new, (keys[:, :, 3:], values[:, :, 3:]))
