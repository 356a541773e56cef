"""The public layout of MaskGIT's weights (google-research/maskgit, flax) -> `maskgen.models.maskgit.MaskGIT`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import renamed

CLASSES = 1000
_WORDS = "Embed_0/word_embeddings/embedding"
_LAYER, _HEAD = r"TransformerLayer_(\d+)", "MlmLayer_0"
_NORMS = {"scale": "weight", "bias": "bias"}
_NAMES = {
    r"Embed_0/position_embeddings/embedding": "positions",
    rf"{_HEAD}/mlm_bias/bias": "head.bias",
    **{rf"Embed_0/embeddings_ln/{old}": f"embedding_norm.{new}" for old, new in _NORMS.items()},
    **{rf"{_HEAD}/mlm_ln/{old}": f"head.norm.{new}" for old, new in _NORMS.items()},
    **{
        rf"{_LAYER}/{part}/{old}": rf"blocks.\1.{name}.{new}"
        for part, name in (("Attention_0/attention_output_ln", "attention_norm"), ("Mlp_0/layer_output_ln", "mlp_norm"))
        for old, new in _NORMS.items()
    },
    **{
        rf"{_LAYER}/{part}/{old}": rf"blocks.\1.{name}.{new}"
        for part, name in (
            ("Attention_0/self_attention/out", "attention.out"),
            ("Mlp_0/intermediate_output", "mlp.expand"),
            ("Mlp_0/layer_output", "mlp.contract"),
        )
        for old, new in {"kernel": "weight", "bias": "bias"}.items()
    },
    **{rf"{_HEAD}/mlm_dense/{old}": f"head.dense.{new}" for old, new in {"kernel": "weight", "bias": "bias"}.items()},
}


def maskgit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public tree of flax, flat, with the names and layouts of a `MaskGIT`.

    Raises:
        UserError: a key that no MaskGIT has.
    """
    rest = {key: value for key, value in state.items() if "/self_attention/" not in key or "/out/" in key}
    ours = renamed(rest, _NAMES, (_WORDS,), "MaskGIT")
    for name, value in ours.items():
        if name.endswith(("out.weight", "expand.weight", "contract.weight", "dense.weight")):
            ours[name] = value.flatten(0, -2).mT  # a kernel's outputs are its last dimension
    ours["embedding.weight"], ours["head.bias"] = _rows(state[_WORDS]), _rows(ours["head.bias"])
    for index in range(_depth(state)):
        kernels, biases = zip(*_projections(state, index), strict=True)
        ours[f"blocks.{index}.attention.qkv.weight"] = torch.cat(kernels)
        ours[f"blocks.{index}.attention.qkv.bias"] = torch.cat(biases)
    return ours


def _projections(state: Mapping[str, Tensor], index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight (D, D) and bias (D,) of queries, keys and values."""
    for part in ("query", "key", "value"):
        home = f"TransformerLayer_{index}/Attention_0/self_attention/{part}"
        yield state[f"{home}/kernel"].flatten(1).mT, state[f"{home}/bias"].flatten()


def _rows(table: Tensor) -> Tensor:
    """Rows as here: codes, [MASK], classes. Published: codes, classes, and [MASK] = -1, the last row."""
    n_codes = len(table) - CLASSES - 1
    return torch.cat([table[:n_codes], table[-1:], table[n_codes:-1]])


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({key.split("/")[0] for key in state if key.startswith("TransformerLayer_")})


@CONVERTERS.register("maskgit")
class MaskGITWeights(Converter):
    """MaskGIT (google-research/maskgit, flax), class-conditional ImageNet."""

    parameters = "172 M"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2202.04200"
    needs = "MaskGIT's VQGAN (flax or torch)"

    def recognises(self, found: Published) -> bool:
        needed = {_WORDS, "Embed_0/position_embeddings/embedding", "TransformerLayer_0/Mlp_0/layer_output/kernel"}
        return needed <= found.state.keys() and len(found.state[_WORDS]) > CLASSES + 1

    def target(self, found: Published) -> Target:
        kernel = found.state["TransformerLayer_0/Attention_0/self_attention/query/kernel"]  # (D, heads, d)
        hidden = found.state["TransformerLayer_0/Mlp_0/intermediate_output/kernel"].shape[1]
        model = {
            "type": "maskgit", "width": len(kernel), "depth": _depth(found.state), "heads": kernel.shape[1],
            "mlp_ratio": hidden / len(kernel), "dropout": 0.1, "norm": "post", "condition": "token",
            "positions": "learned", "tied": True, "has_null_label": False,
        }  # fmt: skip
        side = math.isqrt(len(found.state["Embed_0/position_embeddings/embedding"]) - 1)
        n_codes = len(found.state[_WORDS]) - CLASSES - 1
        recipe = shipped("image/imagenet-maskgit", model=model)
        return image_target(recipe, (side, side), pixels=16, n_classes=CLASSES, vocab_size=n_codes)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return maskgit(found.state)
