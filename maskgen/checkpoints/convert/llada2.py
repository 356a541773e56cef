"""The public layout of LLaDA2's weights (inclusionAI), a mixture of experts -> `maskgen.models.blockwise`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.language_model import LanguageModelWeights, config_number, require_usual
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count
from maskgen.core.errors import UserError

BLOCK_LENGTH = 32
"""Of all published models; config.json does not say it."""
_LAYER = r"layers\.(\d+)\."
_MLP = _LAYER + r"mlp\."
_USUAL = {
    "hidden_act": "silu", "use_bias": False, "rope_scaling": None, "use_sliding_window": False, "norm_head": False,
    "score_function": "sigmoid", "norm_topk_prob": True,
}  # fmt: skip


@CONVERTERS.register("llada2")
class LLaDA2Weights(LanguageModelWeights):
    """LLaDA2.0, 2.1 and 2.2 (inclusionAI), block diffusion over text with a mixture of experts, blocks of 32."""

    parameters = "16 B (mini), 103 B (flash)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2512.15745"

    embedding = "word_embeddings.weight"
    head = "lm_head.weight"
    names: ClassVar[Mapping[str, str]] = {
        "norm.weight": "norm.weight",
        _LAYER + r"input_layernorm\.weight": r"blocks.\1.attention_norm.weight",
        _LAYER + r"post_attention_layernorm\.weight": r"blocks.\1.mlp_norm.weight",
        _LAYER + r"attention\.query_key_value\.(weight|bias)": r"blocks.\1.attention.qkv.\2",
        _LAYER + r"attention\.dense\.weight": r"blocks.\1.attention.out.weight",
        _LAYER + r"attention\.query_layernorm\.weight": r"blocks.\1.attention.q_norm.weight",
        _LAYER + r"attention\.key_layernorm\.weight": r"blocks.\1.attention.k_norm.weight",
        _MLP + r"down_proj\.weight": r"blocks.\1.mlp.contract.weight",
        _MLP + r"gate\.weight": r"blocks.\1.mlp.gate.weight",
        _MLP + r"gate\.expert_bias": r"blocks.\1.mlp.score_bias",
        _MLP + r"shared_experts\.down_proj\.weight": r"blocks.\1.mlp.shared.contract.weight",
    }
    joined: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        _MLP + r"gate_proj\.weight": (("gate_proj", "up_proj"), r"blocks.\1.mlp.expand.weight"),
        _MLP + r"shared_experts\.gate_proj\.weight": (
            ("gate_proj", "up_proj"), r"blocks.\1.mlp.shared.expand.weight",
        ),
    }  # fmt: skip
    elsewhere = r"\.mlp\.experts\."
    shipped_recipe = "text/llada2-mini"
    keys: ClassVar[Mapping[str, str]] = {
        "length": "max_position_embeddings", "is_tied": "tie_word_embeddings", "depth": "num_hidden_layers",
        "heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    }  # fmt: skip
    gate, eps = "layers.0.mlp.gate_proj.weight", 1e-6
    mask = 156_895

    def recognises(self, found: Published) -> bool:
        needed = {self.embedding, self.gate, "layers.0.attention.query_key_value.weight"}
        return needed <= found.state.keys() and any(name.endswith(".mlp.gate.expert_bias") for name in found.state)

    def settings(self, found: Published) -> dict[str, object]:
        require_usual(found, _USUAL, "LLaDA2")
        width, heads = found.state[self.embedding].shape[1], config_number(found, "num_attention_heads")
        if config_number(found, "head_dim", width // heads) * heads != width:
            raise UserError(f"config.json: head_dim must be hidden_size / num_attention_heads, {width} / {heads}")
        return {
            "type": "bd3",
            "block_length": BLOCK_LENGTH,
            "qkv_bias": "layers.0.attention.query_key_value.bias" in found.state,
            "qk_norm": True,
            "qk_norm_eps": config_number(found, "rms_norm_eps", self.eps),
            "rotary_share": config_number(found, "partial_rotary_factor", 0.5),
            "experts": self._experts(found),
        }

    def _experts(self, found: Published) -> dict[str, object]:
        """The key `experts` of the recipe's model."""
        n_shared = found.config.get("num_shared_experts")
        return {
            "n_experts": config_number(found, "num_experts"),
            "n_chosen": config_number(found, "num_experts_per_tok"),
            "width": config_number(found, "moe_intermediate_size"),
            "n_groups": config_number(found, "n_group"),
            "n_chosen_groups": config_number(found, "topk_group"),
            "n_shared": 0 if n_shared is None else config_number(found, "num_shared_experts"),
            "scale": config_number(found, "routed_scaling_factor", 2.5),
            "n_dense": config_number(found, "first_k_dense_replace", 0),
        }

    def tensors(self, found: Published) -> dict[str, Tensor]:
        ours = super().tensors(found)
        for layer in range(count(found.state, "layers")):
            if any(name.startswith(f"layers.{layer}.mlp.experts.") for name in found.state):
                gate, up, down = (self._stacked(found, layer, part) for part in ("gate_proj", "up_proj", "down_proj"))
                ours[f"blocks.{layer}.mlp.expand"] = torch.cat([gate, up], 1)
                ours[f"blocks.{layer}.mlp.contract"] = down
        return ours

    def _stacked(self, found: Published, layer: int, part: str) -> Tensor:
        """One matrix of all experts of a layer, (E, n_out, n_in): stored one by one, or together (dFactory).

        Raises:
            UserError: that of an expert is missing.
        """
        prefix = f"layers.{layer}.mlp.experts."
        if (whole := found.state.get(f"{prefix}{part}")) is not None:
            return whole
        names = [name for name in found.state if re.fullmatch(rf"{re.escape(prefix)}\d+\.{part}\.weight", name)]
        ordered = [f"{prefix}{index}.{part}.weight" for index in range(len(names))]
        if missing := [name for name in ordered if name not in found.state]:
            raise UserError(f"{missing[0]} is missing; is the file whole?")
        return torch.stack([found.state[name] for name in ordered])
