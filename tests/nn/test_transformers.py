"""Settings of public language models, against the layers of the `transformers` package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskgen.nn.block import Block, Residual
from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.layers.norms import Norm
from maskgen.nn.mixers.attention import AttentionSettings, QKNorm
from maskgen.nn.mixers.rotary import rotation_1d
from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.patterns import Causal, FullAttention
from tests.cases import each

llama = pytest.importorskip("transformers.models.llama.modeling_llama")
qwen = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
WIDTH, HEADS, KV_HEADS, HIDDEN, L = 24, 4, 2, 40, 9
SIZES = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": HIDDEN,
    "num_hidden_layers": 1, "attn_implementation": "sdpa",
}  # fmt: skip


def ours(layer: nn.Module, head_width: int, qk_norm: QKNorm | None, bias: bool) -> Block:
    """A block with the weights of a decoder layer."""
    settings = AttentionSettings(
        WIDTH, HEADS, KV_HEADS, head_width, qk_norm=qk_norm, qkv_bias=bias, out_bias=bias, rotary="half"
    )
    block = Block(WIDTH, SelfAttention(settings), GatedMlp(WIDTH, HIDDEN), Residual(Norm("rms", 1e-6)))
    theirs, kinds = dict(layer.named_parameters()), ["weight", "bias"] if bias else ["weight"]
    state = {
        "attention_norm.weight": theirs["input_layernorm.weight"],
        "mlp_norm.weight": theirs["post_attention_layernorm.weight"],
        "mlp.expand.weight": torch.cat([theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"]]),
        "mlp.contract.weight": theirs["mlp.down_proj.weight"],
    }
    for kind in kinds:
        state[f"attention.qkv.{kind}"] = torch.cat([theirs[f"self_attn.{name}_proj.{kind}"] for name in "qkv"])
        state[f"attention.out.{kind}"] = theirs[f"self_attn.o_proj.{kind}"]
    if qk_norm is not None:
        state |= {f"attention.{name}_norm.weight": theirs[f"self_attn.{name}_norm.weight"] for name in "qk"}
    block.load_state_dict(state)
    return block


@each("name, head_width, bias", [("llama", 0, False), ("llama", 0, True), ("llama", 10, False), ("qwen", 10, False)])
def test_a_block_is_the_decoder_layer_with_its_weights(name: str, head_width: int, bias: bool) -> None:
    torch.manual_seed(0)
    home, kind = (llama, "Llama") if name == "llama" else (qwen, "Qwen3")
    config = getattr(home, f"{kind}Config")(
        **SIZES, head_dim=head_width or WIDTH // HEADS, rms_norm_eps=1e-6, attention_bias=bias, mlp_bias=False
    )
    layer = getattr(home, f"{kind}DecoderLayer")(config, 0).eval().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    block = ours(layer, head_width, QKNorm(Norm("rms", 1e-6)) if name == "qwen" else None, bias)
    x, positions = torch.randn(2, L, WIDTH), torch.arange(L)[None] + 3
    rotary = getattr(home, f"{kind}RotaryEmbedding")(config)(x, positions)
    rotation = rotation_1d(positions[0], head_width or WIDTH // HEADS)
    for pattern in (Causal(), FullAttention()):
        allowed = torch.ones(L, L).tril().bool() if isinstance(pattern, Causal) else torch.ones(L, L).bool()
        expected: Tensor = layer(x, attention_mask=allowed[None, None], position_embeddings=rotary)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(block(x, rotation=rotation, mask=pattern.mask(L)), expected, atol=1e-5, rtol=1e-5)
