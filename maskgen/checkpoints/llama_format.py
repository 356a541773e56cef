"""Text networks that are those of Llama or Qwen2, under the names of transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.traits import traits_of
from maskgen.models.blockwise import Autoregressive, BlockDiffusion
from maskgen.models.mdlm import MDLM
from maskgen.models.text import TextTransformer
from maskgen.nn.mixers.registry import mixer_name

NEEDED: Mapping[str, object] = {
    "norm": "rms", "mlp": "swiglu", "rotary": "half", "head_bias": False, "qk_norm": False, "cond_width": 0,
    "embedding_width": 0,
}  # fmt: skip
"""Keys of `TextSettings` that Llama has no choice of."""

_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "mlp.contract.weight": "mlp.down_proj.weight",
}


def require_llama(network: TextTransformer) -> None:
    """Check that a network is one of Llama or Qwen2.

    Raises:
        UserError: the keys of the recipe in which it differs.
    """
    settings = vars(network.settings)
    unlike = [f"{key} {settings[key]} (not {value})" for key, value in NEEDED.items() if settings[key] != value]
    if mixer_name(network.settings.mixer) != "attention":
        unlike.append(f"mixer {mixer_name(network.settings.mixer)} (not attention)")
    if traits_of(network).has_exponents:
        unlike.append("has_exponents")
    if type(network) not in (MDLM, Autoregressive, BlockDiffusion):
        unlike.append(f"type {type(network).__name__}")
    if unlike:
        raise UserError(
            f"--format huggingface: transformers has no counterpart of {type(network).__name__} with model."
            f"{', model.'.join(unlike)}; use --format maskgen, or weights for the tensors alone"
        )


def mask_row(network: TextTransformer) -> int:
    """The id of [MASK] in the tables."""
    row = network.settings.mask_row
    return network.vocab_size if row is None else row


def llama_config(network: TextTransformer, length: int) -> dict[str, object]:
    """Keys of config.json; `model_type` is `llama`, or `qwen2` with biases.

    Args:
        network: of `require_llama`.
        length: tokens in a row.
    """
    settings = network.settings
    return {
        "model_type": "qwen2" if settings.qkv_bias else "llama",
        "vocab_size": network.embedding.num_embeddings,
        "hidden_size": settings.width,
        "intermediate_size": settings.block.hidden,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.n_kv_heads or settings.heads,
        "hidden_act": "silu",
        "rms_norm_eps": settings.norm_eps,
        "rope_theta": settings.rotary_base,
        "max_position_embeddings": length + 1,
        "tie_word_embeddings": settings.is_tied,
    }


def llama_tensors(network: TextTransformer) -> dict[str, Tensor]:
    """The weights under the names of transformers.

    A head without a row for [MASK] is given one of zeros: the logit of [MASK] is not to be used.
    """
    state, settings = network.state_dict(), network.settings
    found = {"model.embed_tokens.weight": state["embedding.weight"], "model.norm.weight": state["norm.weight"]}
    if network.head is not None:
        head = state["head.weight"][: network.vocab_size]
        n_more = network.embedding.num_embeddings - len(head)
        found["lm_head.weight"] = torch.cat([head, head.new_zeros(n_more, head.shape[1])])
    shared = (settings.n_kv_heads or settings.heads) * (settings.width // settings.heads)
    for layer in range(settings.depth):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        found |= {theirs + new: state[ours + old] for old, new in _LAYER.items()}
        for kind in ("weight", "bias") if settings.qkv_bias else ("weight",):
            parts = state[f"{ours}attention.qkv.{kind}"].split([settings.width, shared, shared])
            found |= {f"{theirs}self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        gate, up = state[f"{ours}mlp.expand.weight"].chunk(2)
        found |= {f"{theirs}mlp.gate_proj.weight": gate, f"{theirs}mlp.up_proj.weight": up}
    return found
