"""Laws of the transformer block and of its settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.block import Block, Residual
from maskgen.nn.checkpointing import recompute
from maskgen.nn.layers.mlp import ACTIVATIONS, GatedMlp, Mlp
from maskgen.nn.layers.moe import ExpertChoice
from maskgen.nn.layers.norms import Norm
from maskgen.nn.mixers.attention import AttentionSettings, QKNorm
from maskgen.nn.mixers.base import TokenMixer
from maskgen.nn.mixers.rotary import rotation_1d
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.mixers.token_mixing import TokenMixing
from maskgen.nn.published_blocks import (
    BlockSizes,
    CaptionedSizes,
    bert_block,
    captioned_block,
    cross_block,
    dit_block,
    vit_block,
)
from maskgen.nn.text_block import TextBlockSettings, text_block

WIDTH, LENGTH, COND = 8, 5, 3
SIZES = BlockSizes(WIDTH, 2)
TEXT = TextBlockSettings(WIDTH, 2, 4 * WIDTH)
ROTATION = rotation_1d(torch.arange(LENGTH), 4)
NORMS = [
    Norm(),
    Norm(has_bias=False),
    Norm(has_weight=False, has_bias=False),
    Norm("rms"),
    Norm("rms", None, has_weight=False),
]
MIXERS: list[Callable[[], TokenMixer]] = [
    lambda: SelfAttention(AttentionSettings(WIDTH, 2)),
    lambda: SelfAttention(AttentionSettings(WIDTH, 4, n_kv_heads=2, qk_norm=QKNorm(), qkv_bias=False)),
    lambda: SelfAttention(AttentionSettings(WIDTH, 3, head_width=4, qk_norm=QKNorm(over="width")), "q_kv"),
    lambda: TokenMixing(WIDTH, LENGTH, heads=2),
]
MLPS: list[Callable[[], nn.Module]] = [
    lambda: Mlp(WIDTH, 16),
    lambda: Mlp(WIDTH, 16, activation="relu", has_bias=False),
    lambda: GatedMlp(WIDTH, 12),
    lambda: GatedMlp(WIDTH, 12, activation="gelu_tanh", has_bias=True),
    lambda: ExpertChoice(WIDTH, 6, 4),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(module: nn.Module) -> nn.Module:
    """In float64, with no parameter left at its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def every_block() -> list[tuple[Block, Tensor | None]]:
    """Every mixer with every feed-forward layer, norms and positions in turn; a condition where there is modulation."""
    found: list[tuple[Block, Tensor | None]] = []
    ways = itertools.cycle((("pre", False, False), ("pre", True, True), ("post", False, False)))
    for (mixer, mlp), norm, way in zip(itertools.product(MIXERS, MLPS), itertools.cycle(NORMS), ways, strict=False):
        position, fused, has_own = way
        torch.manual_seed(0)
        own = nn.Linear(COND, 6 * WIDTH) if has_own else None
        block = Block(WIDTH, mixer(), mlp(), Residual(norm, position, fused), own)  # type: ignore[arg-type]
        stirred(block)
        found.append((block, noise(2, COND) if has_own else None))
    return found


def test_any_parts_make_a_block_whose_rows_are_independent_and_whose_parameters_all_have_gradients() -> None:
    x = noise(2, LENGTH, WIDTH)
    for block, cond in every_block():
        together = block(x, cond)
        assert together.shape == x.shape
        torch.testing.assert_close(together[1:], block(x[1:], None if cond is None else cond[1:]))
        (together * noise(*x.shape, seed=3)).sum().backward()
        silent = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
        # softmax does not change when all keys have the same offset
        assert [name for name in silent if not name.endswith(("qkv.bias", "kv.bias"))] == [], block


def test_recomputed_blocks_have_the_same_outputs_and_gradients_to_the_bit() -> None:
    for index, ((plain, cond), (again, _)) in enumerate(zip(every_block()[::3], every_block()[::3], strict=True)):
        recompute(nn.ModuleList([again]))
        x, found = noise(2, LENGTH, WIDTH), []
        for block in (plain, again):
            block(x, cond, mask="causal").square().sum().backward()
            found.append([p.grad for p in block.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None), index  # type: ignore[arg-type]


def test_a_block_is_its_definition() -> None:
    x, cond = noise(2, LENGTH, WIDTH), noise(2, COND)
    for norm, fused in itertools.product(NORMS, (False, True)):
        mixer, mlp = SelfAttention(AttentionSettings(WIDTH, 2)), GatedMlp(WIDTH, 12)
        block = Block(WIDTH, mixer, mlp, Residual(norm, is_fused=fused), nn.Linear(COND, 6 * WIDTH))
        stirred(block)
        first, second = block.get_submodule("attention_norm"), block.get_submodule("mlp_norm")
        assert block.modulation is not None
        shift, scale, gate, shift_m, scale_m, gate_m = block.modulation(cond)[:, None].chunk(6, -1)
        middle = x + gate * mixer(first(x) * (1 + scale) + shift, ROTATION)
        expected = middle + gate_m * mlp(second(middle) * (1 + scale_m) + shift_m)
        torch.testing.assert_close(block(x, cond, rotation=ROTATION), expected)
        plain = x + mixer(first(x))
        torch.testing.assert_close(block(x), plain + mlp(second(plain)))
        given = Block(WIDTH, mixer, mlp, Residual(norm)).double()
        given.load_state_dict({key: value for key, value in block.state_dict().items() if "modulation" not in key})
        torch.testing.assert_close(given(x, block.modulation(cond), rotation=ROTATION), expected)


def test_norms_after_the_branches_leave_normalised_tokens() -> None:
    x = bert_block(SIZES).double()(100 * noise(2, LENGTH, WIDTH))
    torch.testing.assert_close(x.mean(-1), torch.zeros_like(x[..., 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(-1, unbiased=False), torch.ones_like(x[..., 0]))
    block, x = stirred(bert_block(SIZES)), noise(2, LENGTH, WIDTH)
    first, second = block.get_submodule("attention_norm"), block.get_submodule("mlp_norm")
    middle = first(x + block.get_submodule("attention")(x))
    torch.testing.assert_close(block(x), second(middle + block.get_submodule("mlp")(middle)))


def test_what_norms_before_the_branches_add_does_not_depend_on_the_scale_of_the_tokens() -> None:
    block, x = Block(WIDTH, MIXERS[0](), MLPS[0](), Residual(Norm(eps=1e-12))).double(), noise(2, LENGTH, WIDTH)
    nn.init.zeros_(block.get_parameter("mlp.contract.weight"))
    torch.testing.assert_close(block(10 * x) - 10 * x, block(x) - x)


def test_zero_gates_are_the_identity_and_unit_gates_the_plain_block() -> None:
    x, zeros, ones = noise(2, LENGTH, WIDTH), torch.zeros(2, WIDTH).double(), torch.ones(2, WIDTH).double()
    block = vit_block(SIZES, is_modulated=True).double()
    assert torch.equal(block(x, torch.zeros(2, 6 * WIDTH).double()), x)
    torch.testing.assert_close(block(x, torch.cat([zeros, zeros, ones] * 2, -1)), block(x))


def test_adaptive_blocks_start_as_the_identity_and_captions_alone_pass() -> None:
    x, cond = noise(2, LENGTH, WIDTH), noise(2, COND)
    for block in (dit_block(SIZES, COND), text_block(TEXT, COND)):
        assert torch.equal(block.double()(x, cond), x)
    captioned = captioned_block(CaptionedSizes(WIDTH, WIDTH, 4, 16, 0, 2.0, COND, True, 0.02, "auto")).double()
    captions = noise(2, 3, WIDTH, seed=4)
    norm, layer = captioned.get_submodule("caption_norm"), captioned.get_submodule("caption_attention")
    torch.testing.assert_close(captioned(x, cond, memory=captions), x + layer(norm(x), captions))


def test_a_cross_block_without_self_attention_treats_each_token_alone() -> None:
    x, memory = noise(2, LENGTH, WIDTH), noise(2, 3, 6, seed=5)
    for has_self_attention in (False, True):
        block = stirred(cross_block(SIZES, 6, has_self_attention))
        alone = torch.cat([block(x[:, [at]], memory=memory) for at in range(LENGTH)], 1)
        assert torch.allclose(block(x, memory=memory), alone) is not has_self_attention
        mask = torch.tensor([True, True, False])[None, None, None]
        torch.testing.assert_close(
            block(x, memory=memory, memory_mask=mask), block(x, memory=memory[:, :2]), msg="a masked memory is absent"
        )


PARAMETERS = {
    "bert": "attention.qkv.weight attention.qkv.bias attention.out.weight attention.out.bias attention_norm.weight "
    "attention_norm.bias mlp.expand.weight mlp.expand.bias mlp.contract.weight mlp.contract.bias mlp_norm.weight "
    "mlp_norm.bias",
    "vit": "attention_norm.weight attention_norm.bias attention.qkv.weight attention.qkv.bias attention.out.weight "
    "attention.out.bias mlp_norm.weight mlp_norm.bias mlp.expand.weight mlp.expand.bias mlp.contract.weight "
    "mlp.contract.bias",
    "dit": "attention.qkv.weight attention.qkv.bias attention.out.weight attention.out.bias mlp.expand.weight "
    "mlp.expand.bias mlp.contract.weight mlp.contract.bias modulation.weight modulation.bias",
    "text": "attention_norm.weight attention.qkv.weight attention.out.weight mlp_norm.weight mlp.expand.weight "
    "mlp.expand.bias mlp.contract.weight mlp.contract.bias modulation.weight modulation.bias",
    "captioned": "attention_norm.weight mlp_norm.weight attention.q.weight attention.kv.weight attention.out.weight "
    "caption_norm.weight caption_attention.q.weight caption_attention.kv.weight caption_attention.out.weight "
    "mlp.expand.weight mlp.contract.weight modulation.weight modulation.bias",
}
"""Names of the parameters in the order that checkpoints, optimizers and clipping go by."""


def test_parameters_of_published_blocks_keep_their_names_and_order() -> None:
    blocks = {
        "bert": bert_block(SIZES),
        "vit": vit_block(SIZES),
        "dit": dit_block(SIZES, COND),
        "text": text_block(TEXT, COND),
        "captioned": captioned_block(CaptionedSizes(WIDTH, WIDTH, 4, 16, 0, 2.0, COND, True, 0.02, "auto")),
    }
    for name, block in blocks.items():
        assert [key for key, _ in block.named_parameters()] == PARAMETERS[name].split(), name


def test_rms_norm_is_layer_norm_of_centred_tokens() -> None:
    x = noise(4, WIDTH)
    x = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(Norm("rms").build(WIDTH).double()(x), Norm().build(WIDTH).double()(x))
    assert [name for name, _ in Norm("rms").build(WIDTH).named_parameters()] == ["weight"]
    assert len(list(Norm(has_bias=False).build(WIDTH).parameters())) == 1
    assert len(list(Norm(has_weight=False).build(WIDTH).parameters())) == 0
    for kind, eps, message in (("layer", None, "needs a number for eps"), ("rms", 0.0, "positive, got 0.0")):
        with pytest.raises(ValueError, match=message):
            Norm(kind, eps)  # type: ignore[arg-type]


def test_feed_forward_layers_are_their_definitions() -> None:
    x = noise(3, WIDTH)
    for name, activation in ACTIVATIONS.items():
        for has_bias in (False, True):
            plain, gated = (kind(WIDTH, 6, 0.0, name, has_bias).double() for kind in (Mlp, GatedMlp))
            torch.testing.assert_close(plain(x), plain.contract(activation(plain.expand(x))))
            w_1, w_2 = gated.expand.weight.chunk(2)
            b_1, b_2 = gated.expand.bias.chunk(2) if has_bias else (None, None)
            expected = gated.contract(activation(F.linear(x, w_1, b_1)) * F.linear(x, w_2, b_2))
            torch.testing.assert_close(gated(x), expected)
            for layer in (plain, gated):
                assert (len(list(layer.parameters())) == 4) is has_bias


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be modulated; use position pre"):
        Block(WIDTH, MIXERS[0](), MLPS[0](), Residual(position="post"), nn.Linear(COND, 6 * WIDTH))
    with pytest.raises(ValueError, match="TokenMixing has no attention weights"):
        Block(WIDTH, TokenMixing(WIDTH, LENGTH), MLPS[0]()).weights(torch.zeros(1, LENGTH, WIDTH))
