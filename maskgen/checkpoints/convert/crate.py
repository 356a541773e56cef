"""The public layout of CRATE-MAE's weights (Ma-Lab-Berkeley/CRATE) -> `maskgen.models.crate.CRATE`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import on_our_pixels, pixels_last
from maskgen.core.errors import UserError

_NAMES = {
    r"patch_embed\.proj\.(weight|bias)": r"embedding.\1",
    r"cls_token": "class_token",
    r"mask_token": "mask_token",
    r"blocks\.(\d+)\.layers\.0\.0\.norm\.(weight|bias)": r"encoder.blocks.\1.attention_norm.\2",
    r"blocks\.(\d+)\.layers\.0\.0\.fn\.qkv\.weight": r"encoder.blocks.\1.attention.subspaces.weight",
    r"blocks\.(\d+)\.layers\.0\.0\.fn\.to_out\.0\.(weight|bias)": r"encoder.blocks.\1.attention.out.\2",
    r"blocks\.(\d+)\.layers\.0\.1\.norm\.(weight|bias)": r"encoder.blocks.\1.coding_norm.\2",
    r"blocks\.(\d+)\.layers\.0\.1\.fn\.weight": r"encoder.blocks.\1.coding.dictionary",
    r"norm\.(weight|bias)": r"encoder.norm.\1",
    r"decoder_blocks\.(\d+)\.layers\.0\.0\.norm\.(weight|bias)": r"decoder.blocks.\1.linear_norm.\2",
    r"decoder_blocks\.(\d+)\.layers\.0\.0\.fn\.weight": r"decoder.blocks.\1.linear.weight",
    r"decoder_blocks\.(\d+)\.layers\.0\.1\.norm\.(weight|bias)": r"decoder.blocks.\1.attention_norm.\2",
    r"decoder_blocks\.(\d+)\.layers\.0\.1\.fn\.qkv\.weight": r"decoder.blocks.\1.attention.subspaces.weight",
    r"decoder_blocks\.(\d+)\.layers\.0\.1\.fn\.to_out\.0\.(weight|bias)": r"decoder.blocks.\1.attention.out.\2",
    r"decoder_norm\.(weight|bias)": r"decoder.norm.\1",
    r"decoder_pred\.(weight|bias)": r"head.\1",
}
_COMPUTED = ("pos_embed", "decoder_pos_embed", "decoder_embed.weight", "decoder_embed.bias")
"""Fixed positions, and a projection that the public code never calls."""
HEADS = {384: 6, 576: 12, 768: 12, 1024: 16}
"""Heads of the published widths, which the weights do not determine."""
SIZES = {384: "t", 576: "s", 768: "b", 1024: "l"}
"""Widths -> the names of the recipes."""


def crate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict of CRATE-MAE, without prefixes, with the names and layouts of a `CRATE`.

    The public network takes normalised pixels, ours pixels in [-1, 1]: the first layer is changed to that. Predictions
    are left in the public units, and the public head has the pixels of a patch channels last.

    Raises:
        UserError: a key that no CRATE-MAE has.
    """
    ours = renamed(state, _NAMES, _COMPUTED, "CRATE-MAE")
    if "embedding.weight" not in ours:
        raise UserError("patch_embed.proj.weight is missing; is the file of another network?")
    ours["embedding.weight"], ours["embedding.bias"] = on_our_pixels(ours["embedding.weight"], ours["embedding.bias"])
    for key in ("class_token", "mask_token"):
        ours[key] = ours[key].flatten()
    for key in ("head.weight", "head.bias"):
        ours[key] = pixels_last(ours[key])
    return ours


def crate_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits.

    Raises:
        UserError: a width that was never published.
    """
    width = state["cls_token"].shape[-1]
    return {"type": "crate", "width": width, "depth": count(state, "blocks"), "heads": heads_of(width, HEADS)}


@CONVERTERS.register("crate")
class CRATEWeights(Converter):
    """CRATE-MAE (Ma-Lab-Berkeley/CRATE), a masked autoencoder of images without a class."""

    parameters = "44 M (B)"
    licence = "MIT"
    page = "arxiv.org/abs/2404.02446"

    def recognises(self, found: Published) -> bool:
        return {"blocks.0.layers.0.0.fn.qkv.weight", "mask_token", "decoder_pred.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        spec, patches = crate_spec(found.state), found.state["patch_embed.proj.weight"]
        side, pixels = math.isqrt(found.state["decoder_pos_embed"].shape[-2] - 1), patches.shape[-1]
        tree = shipped(
            f"image/imagenet-crate-{SIZES[len(patches)]}", model=spec, tokenizer={"type": "patches", "size": pixels}
        )
        return image_target(tree, (side, side), pixels=pixels, n_classes=0, token_width=3 * pixels**2)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return crate(found.state)
