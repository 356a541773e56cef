"""The public layout of LLaDA's weights (GSAI-ML) -> `maskgen.models.mdlm.MDLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.language_model import LanguageModelWeights, require_usual
from maskgen.checkpoints.convert.published import Published

_BLOCK = r"transformer\.blocks\.(\d+)\."
_USUAL = {"rope": True, "alibi": False, "layer_norm_type": "rms", "activation_type": "silu", "block_type": "llama"}


@CONVERTERS.register("llada")
class LLaDAWeights(LanguageModelWeights):
    """LLaDA (GSAI-ML/LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5), a masked language model."""

    parameters = "8.0 B"
    licence = "MIT"
    page = "arxiv.org/abs/2502.09992"

    embedding = "transformer.wte.weight"
    head = "transformer.ff_out.weight"
    names: ClassVar[Mapping[str, str]] = {
        r"transformer\.ln_f\.weight": "norm.weight",
        _BLOCK + r"attn_norm\.weight": r"blocks.\1.attention_norm.weight",
        _BLOCK + r"ff_norm\.weight": r"blocks.\1.mlp_norm.weight",
        _BLOCK + r"attn_out\.weight": r"blocks.\1.attention.out.weight",
        _BLOCK + r"ff_out\.weight": r"blocks.\1.mlp.contract.weight",
    }
    joined: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        _BLOCK + r"q_proj\.(weight|bias)": (("q_proj", "k_proj", "v_proj"), r"blocks.\1.attention.qkv.\2"),
        _BLOCK + r"ff_proj\.weight": (("ff_proj", "up_proj"), r"blocks.\1.mlp.expand.weight"),
    }
    shipped_recipe = "text/llada-8b"
    keys: ClassVar[Mapping[str, str]] = {
        "length": "max_sequence_length", "is_tied": "weight_tying", "depth": "n_layers", "heads": "n_heads",
        "n_kv_heads": "n_kv_heads",
    }  # fmt: skip
    gate, eps = "transformer.blocks.0.ff_proj.weight", 1e-5
    mask = 126_336

    def recognises(self, found: Published) -> bool:
        return {self.embedding, "transformer.blocks.0.ff_proj.weight"} <= found.state.keys()

    def settings(self, found: Published) -> dict[str, object]:
        require_usual(found, _USUAL, "LLaDA")
        return {"qkv_bias": "transformer.blocks.0.q_proj.bias" in found.state}
