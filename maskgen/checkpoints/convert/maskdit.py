"""The public layout of MaskDiT's weights (Anima-Lab/MaskDiT) -> `maskgen.models.dit.DiT` with masking `maskdit`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target
from maskgen.checkpoints.convert.dit import (
    EMBEDDERS,
    HEAD,
    check_positions,
    dit_blocks,
    dit_tensors,
    latent_target,
    sizes,
)
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count

_BRIDGE = {
    r"decoder_layer\.linear\.(weight|bias)": r"trunk.bridge.out.\1",
    r"decoder_layer\.adaLN_modulation\.1\.(weight|bias)": r"trunk.bridge.modulation.\1",
    r"mask_token": "trunk.mask_token",
}
_NAMES = (
    EMBEDDERS
    | HEAD
    | _BRIDGE
    | dit_blocks("blocks", "trunk.blocks")
    | dit_blocks("decoder_blocks", "trunk.decoder_blocks")
)
DECODER_HEADS = 16
"""Heads of the published decoder, which the weights do not determine."""


def maskdit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `DiT`.

    Its labels are columns of a matrix and no class is no column: here rows, and one of zeros.

    Raises:
        UserError: a key that no MaskDiT has, or positions that are not the fixed ones.
    """
    for key in ("pos_embed", "decoder_pos_embed"):
        check_positions(key, state)
    ours = dit_tensors(state, _NAMES, ("pos_embed",), "MaskDiT")
    table = ours["labels.weight"].mT
    ours["labels.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
    ours["trunk.mask_token"] = ours["trunk.mask_token"].flatten()
    return ours


def maskdit_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits."""
    decoder = {"depth": count(state, "decoder_blocks"), "width": state["mask_token"].numel(), "heads": DECODER_HEADS}
    return {
        "type": "dit", **sizes(state), "depth": count(state, "blocks"), "masking": {"type": "maskdit", **decoder}
    }  # fmt: skip


@CONVERTERS.register("maskdit")
class MaskDiTWeights(Converter):
    """MaskDiT (Anima-Lab/MaskDiT), class-conditional ImageNet."""

    parameters = "730 M (XL/2)"
    licence = "MIT"
    page = "arxiv.org/abs/2306.09305"
    needs = "autoencoder sd-vae-ft-ema"

    def recognises(self, found: Published) -> bool:
        return {"x_embedder.proj.weight", "decoder_layer.linear.weight", "mask_token"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        table = found.state.get("y_embedder.embedding_table.weight")
        rows = {} if table is None else {"y_embedder.embedding_table.weight": table.mT}  # columns in this layout
        return latent_target("image/imagenet-maskdit-xl", maskdit_spec(found.state), {**found.state, **rows}, n_null=0)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return maskdit(found.state)
