"""The public layout of MaskGIL's weights (synbol/MaskGIL) -> `maskgen.models.maskgit.MaskGIT`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40}
"""Heads of the published widths, which the weights do not determine."""
GRID = (16, 16)
"""Not in the weights: the positions have none."""

_LAYER = r"layers\.(\d+)"
_NAMES = {
    r"tok_emb\.weight": "embedding.weight",
    r"norm\.weight": "head.norm.weight",
    r"output\.weight": "head.output.weight",
    rf"{_LAYER}\.attention\.wqkv\.weight": r"blocks.\1.attention.qkv.weight",
    rf"{_LAYER}\.attention\.wo\.weight": r"blocks.\1.attention.out.weight",
    rf"{_LAYER}\.attention_norm\.weight": r"blocks.\1.attention_norm.weight",
    rf"{_LAYER}\.ffn_norm\.weight": r"blocks.\1.mlp_norm.weight",
    rf"{_LAYER}\.feed_forward\.w2\.weight": r"blocks.\1.mlp.contract.weight",
}
_JOINED = (".feed_forward.w1.weight", ".feed_forward.w3.weight")


def maskgil(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `MaskGIT`; [MASK] is no output here.

    Raises:
        UserError: a key that no MaskGIL has.
    """
    ours = renamed(state, _NAMES, (*_JOINED, "freqs_cis"), "MaskGIL")
    ours["head.output.weight"] = ours["head.output.weight"][:-1]
    for index in range(count(state, "layers")):
        both = [state[f"layers.{index}.feed_forward.w{one}.weight"] for one in "13"]
        ours[f"blocks.{index}.mlp.expand.weight"] = torch.cat(both)
    return ours


@CONVERTERS.register("maskgil")
class MaskGILWeights(Converter):
    """MaskGIL (synbol/MaskGIL), class-conditional ImageNet, by the released code's 1-D positions."""

    parameters = "111 M (B), 343 M (L), 775 M (XL), 1.4 B (XXL)"
    licence = "not stated"
    page = "github.com/synbol/MaskGIL"
    needs = "LlamaGen's VQ-16"

    def recognises(self, found: Published) -> bool:
        return {"tok_emb.weight", "layers.0.attention.wqkv.weight", "output.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        rows, width = found.state["tok_emb.weight"].shape
        n_codes = len(found.state["output.weight"]) - 1
        model = {
            "type": "maskgit", "width": width, "depth": count(found.state, "layers"), "heads": heads_of(width, HEADS),
            "dropout": 0.1, "norm": "rms", "condition": "token", "positions": "raster", "head": "linear", "tied": False,
        }  # fmt: skip
        recipe = shipped("image/imagenet-maskgil-b", model=model)
        return image_target(recipe, GRID, pixels=16, n_classes=rows - n_codes - 2, vocab_size=n_codes)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return maskgil(found.state)
