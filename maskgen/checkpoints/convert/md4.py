"""The public layout of MD4's text networks (google-deepmind/md4, flax) -> `maskgen.models.mdlm.MDLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError
from maskgen.recipes.build import DataFacts, text_layout
from maskgen.tokenizers.text.learned import characters
from maskgen.tokenizers.text.pretrained import published_tokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

PREFIX = "classifier/"
TEXT8 = " abcdefghijklmnopqrstuvwxyz"
_BLOCK = r"Transformer_0/TransformerBlock_(\d+)/"
_NAMES = {
    r"CondEmbedding_0/Dense_0/(kernel|bias)": "time.mlp.2",
    r"Transformer_0/Dense_0/(kernel|bias)": "projection",
    r"Transformer_0/Dense_1/(kernel|bias)": "modulation",
    r"Transformer_0/Dense_2/(kernel)": "head",
    _BLOCK + r"Dense_0/(kernel|bias)": r"blocks.\1.modulation",
    _BLOCK + r"attention/wo/(kernel)": r"blocks.\1.attention.out",
    _BLOCK + r"feed_forward/w2/(kernel)": r"blocks.\1.mlp.contract",
}
_JOINED = {
    _BLOCK + r"attention/wq/kernel": (("wq", "wk", "wv"), r"blocks.\1.attention.qkv.weight"),
    _BLOCK + r"feed_forward/w1/kernel": (("w1", "w3"), r"blocks.\1.mlp.expand.weight"),
}
_LATER = _BLOCK + r"(attention/(wk|wv)|feed_forward/w3)/kernel"


@CONVERTERS.register("md4")
class MD4Weights(Converter):
    """MD4 (google-deepmind/md4), time-conditioned text networks of flax."""

    parameters = "89 M (text8), 166 M and 416 M (OpenWebText)"
    licence = "Apache-2.0; no weights are published"
    page = "arxiv.org/abs/2406.04329"
    needs = "characters of text8, or GPT-2 tokenizer"

    def recognises(self, found: Published) -> bool:
        return {"Embed_0/embedding", "Transformer_0/TransformerBlock_0/feed_forward/w1/kernel"} <= _bare(found).keys()

    def target(self, found: Published) -> Target:
        state = _bare(found)
        if "CondEmbedding_0/dense0/kernel" not in state or "Transformer_0/Dense_0/kernel" not in state:
            raise UserError("an MD4 without time or with another embedding was never published; it is not supported")
        n_rows, embedding_width = state["Embed_0/embedding"].shape
        width = state["Transformer_0/Dense_0/kernel"].shape[1]
        depth = len({key.split("/")[1] for key in state if key.startswith("Transformer_0/TransformerBlock_")})
        model = {
            "type": "mdlm", "has_time": True, "time_embedding": "md4", "cond_width": embedding_width, "norm": "plain",
            "mlp": "glu", "mlp_width": state["Transformer_0/TransformerBlock_0/feed_forward/w1/kernel"].shape[1],
            "embedding_width": embedding_width, "width": width, "depth": depth, "heads": width // embedding_width,
            "head_bias": False,
        }  # fmt: skip
        is_text8 = n_rows == len(TEXT8) + 1
        length = 256 if is_text8 else 1024
        recipe = shipped("text/text8-md4" if is_text8 else "text/owt-mdlm", model=model)
        return Target(recipe, DataFacts(length=length), text_layout(n_rows - 1, length))

    def tensors(self, found: Published) -> dict[str, Tensor]:
        state = _bare(found)
        ours = {"embedding.weight": state["Embed_0/embedding"]}
        for key in state.keys() - {"Embed_0/embedding"}:
            if not re.fullmatch(_LATER, key):
                name, value = _converted(state, key)
                ours[name] = value
        if len(state["Embed_0/embedding"]) == len(TEXT8) + 1:
            ours |= {name: _by_code_point(ours[name]) for name in ("embedding.weight", "head.weight")}
        return ours

    def text_tokenizer(self, found: Published) -> TextTokenizer | None:
        size = len(_bare(found)["Embed_0/embedding"]) - 1
        if size == len(TEXT8):
            return characters(lambda: iter([TEXT8]))
        return None if found.folder is None else published_tokenizer(found.folder, size, has_roles=False)


def _by_code_point(rows: Tensor) -> Tensor:
    """Rows of text8's characters, the space first; published networks have it after the letters."""
    n = len(TEXT8)
    return torch.cat([rows[n - 1 : n], rows[: n - 1], rows[n:]])


def _bare(found: Published) -> Mapping[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in found.state.items()}


def _converted(state: Mapping[str, Tensor], key: str) -> tuple[str, Tensor]:
    """Our name of a tensor, and the tensor: matrices transposed, joined with those that ours holds in one.

    Raises:
        UserError: no tensor of the layout, or one of those joined is missing.
    """
    if key == "CondEmbedding_0/dense0/bias":
        return "time.mlp.0.bias", state[key]
    if key == "CondEmbedding_0/dense0/kernel":  # sines first, ours cosines
        return "time.mlp.0.weight", state[key].mT.roll(len(state[key]) // 2, 1)
    for pattern, (parts, name) in _JOINED.items():
        if re.fullmatch(pattern, key):
            several = [key.replace(f"/{parts[0]}/", f"/{part}/") for part in parts]
            if missing := [one for one in several if one not in state]:
                raise UserError(f"{missing[0]} is missing; is the file of another network?")
            return re.sub(pattern, name, key), torch.cat([state[one].mT for one in several])
    for pattern, name in _NAMES.items():
        if re.fullmatch(pattern, key):
            if key.endswith("bias"):
                return re.sub(pattern, name, key) + ".bias", state[key]
            return re.sub(pattern, name, key) + ".weight", state[key].mT
    raise UserError(f"{key} is no tensor of MD4's text network; is the file of another network?")
