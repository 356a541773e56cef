"""The layout of MDLM, SEDD and BD3-LM: one transformer (kuleshov-group, louaaron) -> our text networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, renamed
from maskgen.core.errors import UserError
from maskgen.recipes.build import DataFacts, text_layout
from maskgen.tokenizers.text.pretrained import published_tokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

_PARTS = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attn_qkv": "attention.qkv",
    "attn_out": "attention.out",
    r"mlp\.0": "mlp.expand",
    r"mlp\.2": "mlp.contract",
    "adaLN_modulation": "modulation",
}
NAMES = {
    r"vocab_embed\.embedding": "embedding.weight",
    r"sigma_map\.mlp\.([02])\.(weight|bias)": r"time.mlp.\1.\2",
    r"output_layer\.norm_final\.weight": "norm.weight",
    r"output_layer\.linear\.(weight|bias)": r"head.\1",
    r"output_layer\.adaLN_modulation\.(weight|bias)": r"modulation.\1",
} | {rf"blocks\.(\d+)\.{theirs}\.(weight|bias)": rf"blocks.\1.{ours}.\2" for theirs, ours in _PARTS.items()}
COMPUTED = ("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")
PREFIX = "backbone."


class DDiTWeights(Converter):
    """Base of the converters of this transformer; [MASK] is its last row."""

    shipped_recipe: ClassVar[str] = "text/owt-mdlm"
    starts_with_eos: ClassVar[bool] = False

    def recognises(self, found: Published) -> bool:
        return {"vocab_embed.embedding", "blocks.0.attn_qkv.weight", "output_layer.linear.weight"} <= bare(found).keys()

    def target(self, found: Published) -> Target:
        vocab_size = len(bare(found)["vocab_embed.embedding"]) - 1
        length = found.config.get("model_length", 1024)
        if not isinstance(length, int):
            raise UserError(f"config.json: model_length must be a number, got {length!r}")
        recipe = shipped(self.shipped_recipe, model=self.model(found))
        return Target(recipe, DataFacts(length=length), text_layout(vocab_size, length))

    @abstractmethod
    def model(self, found: Published) -> dict[str, object]:
        """The recipe's `model`."""

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return renamed(bare(found), NAMES, COMPUTED, "text transformer of MDLM, SEDD or BD3-LM")

    def text_tokenizer(self, found: Published) -> TextTokenizer | None:
        size = len(bare(found)["vocab_embed.embedding"]) - 1
        if found.folder is None:
            return None
        return published_tokenizer(found.folder, size, has_roles=False, starts_with_eos=self.starts_with_eos)


@CONVERTERS.register("mdlm")
class MDLMWeights(DDiTWeights):
    """MDLM (kuleshov-group/mdlm), text without or with time conditioning."""

    parameters = "170 M"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2406.07524"
    needs = "GPT-2 tokenizer"

    def recognises(self, found: Published) -> bool:
        return super().recognises(found) and is_wrapped(found) and not _is_blockwise(found)

    def model(self, found: Published) -> dict[str, object]:
        return {"type": "mdlm", **_sizes(found), **_time(found.config.get("time_conditioning") is True)}


@CONVERTERS.register("sedd")
class SEDDWeights(DDiTWeights):
    """SEDD, absorbing (louaaron/Score-Entropy-Discrete-Diffusion), as a denoiser: its scores are its logits."""

    parameters = "170 M (small), 424 M (medium)"
    licence = "MIT"
    page = "arxiv.org/abs/2310.16834"
    needs = "GPT-2 tokenizer"
    shipped_recipe = "text/owt-sedd"

    def recognises(self, found: Published) -> bool:
        return super().recognises(found) and not is_wrapped(found)

    def target(self, found: Published) -> Target:
        graph = found.config.get("graph", {})
        if isinstance(graph, Mapping) and graph.get("type", "absorb") != "absorb":
            raise UserError(f"config.json: a {graph['type']} SEDD has no [MASK]; only absorbing ones can be converted")
        return super().target(found)

    def model(self, found: Published) -> dict[str, object]:
        return {"type": "mdlm", **_sizes(found), **_time(has_time=True)}


@CONVERTERS.register("bd3")
class BD3Weights(DDiTWeights):
    """BD3-LM (kuleshov-group/bd3lms), block diffusion over text."""

    parameters = "170 M"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2503.09573"
    needs = "GPT-2 tokenizer"
    shipped_recipe = "text/owt-bd3"
    starts_with_eos = True

    def recognises(self, found: Published) -> bool:
        return super().recognises(found) and _is_blockwise(found)

    def model(self, found: Published) -> dict[str, object]:
        length = found.config.get("block_size")
        if not isinstance(length, int):
            raise UserError("the length of a block is in config.json of the folder; convert the folder, not the file")
        if found.config.get("time_conditioning") is True or found.config.get("causal") is True:
            raise UserError("config.json: a causal or time-conditioned BD3-LM was never published; it is not supported")
        return {"type": "bd3", "block_length": length, **_sizes(found)}


def bare(found: Published) -> Mapping[str, Tensor]:
    """The tensors of the transformer without the name of what wraps it."""
    if not is_wrapped(found):
        return found.state
    return {name.removeprefix(PREFIX): found.state[name] for name in found.state}


def is_wrapped(found: Published) -> bool:
    """Whether the transformer is the `backbone` of another module, as in MDLM and BD3-LM."""
    return f"{PREFIX}vocab_embed.embedding" in found.state


def _is_blockwise(found: Published) -> bool:
    return "sampling_eps_min" in found.state or "block_size" in found.config


def _sizes(found: Published) -> dict[str, object]:
    state = bare(found)
    width = state["vocab_embed.embedding"].shape[1]
    time = state.get("sigma_map.mlp.2.weight")
    frequencies = state.get("rotary_emb.inv_freq", torch.empty(32))  # heads of 64 numbers in all published sizes
    model = found.config.get("model")
    config = model if isinstance(model, Mapping) else found.config
    heads = config.get("n_heads", width // (2 * len(frequencies)))
    hidden = len(state["blocks.0.mlp.0.bias"])
    return {
        "width": width, "depth": count(state, "blocks"), "heads": heads, "mlp_ratio": hidden / width, "rotary": "half",
        "cond_width": 0 if time is None else len(time), "has_mask_row": True, "dropout": 0.1, "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
    }  # fmt: skip


def _time(has_time: bool) -> dict[str, object]:
    return {"has_time": True, "time_embedding": "sigma"} if has_time else {}
