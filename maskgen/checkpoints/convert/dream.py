"""The public layout of Dream's weights (Dream-org), that of Qwen2 -> `maskgen.models.mdlm.MDLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.language_model import LanguageModelWeights, require_usual
from maskgen.checkpoints.convert.published import Published

_LAYER = r"layers\.(\d+)\."
_USUAL = {"rope_scaling": None, "use_sliding_window": False, "hidden_act": "silu"}


@CONVERTERS.register("dream")
class DreamWeights(LanguageModelWeights):
    """Dream (Dream-org/Dream-v0-Base-7B, Dream-v0-Instruct-7B, DreamOn, Dream-Coder), a masked language model."""

    parameters = "7.6 B"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2508.15487"

    embedding = "embed_tokens.weight"
    head = "lm_head.weight"
    names: ClassVar[Mapping[str, str]] = {
        "norm.weight": "norm.weight",
        _LAYER + r"input_layernorm\.weight": r"blocks.\1.attention_norm.weight",
        _LAYER + r"post_attention_layernorm\.weight": r"blocks.\1.mlp_norm.weight",
        _LAYER + r"self_attn\.o_proj\.weight": r"blocks.\1.attention.out.weight",
        _LAYER + r"mlp\.down_proj\.weight": r"blocks.\1.mlp.contract.weight",
    }
    joined: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        _LAYER + r"self_attn\.q_proj\.(weight|bias)": (("q_proj", "k_proj", "v_proj"), r"blocks.\1.attention.qkv.\2"),
        _LAYER + r"mlp\.gate_proj\.weight": (("gate_proj", "up_proj"), r"blocks.\1.mlp.expand.weight"),
    }
    shipped_recipe = "text/dream-7b"
    keys: ClassVar[Mapping[str, str]] = {
        "length": "max_length", "is_tied": "tie_word_embeddings", "depth": "num_hidden_layers",
        "heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    }  # fmt: skip
    gate, eps = "layers.0.mlp.gate_proj.weight", 1e-6
    mask = 151_666
    tokenizer_kind = "Qwen2Tokenizer"

    def recognises(self, found: Published) -> bool:
        is_dream = str(found.config.get("model_type", "")).lower() == "dream"
        return is_dream and {self.embedding, "layers.0.self_attn.q_proj.bias"} <= found.state.keys()

    def settings(self, found: Published) -> dict[str, object]:
        require_usual(found, _USUAL, "Dream")
        return {"is_shifted": True, "qkv_bias": True}
