"""The public layout of SimMIM's ViT (microsoft/SimMIM) -> `maskgen.models.mae.MAE` with relative positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import (
    HEADS,
    grid_side,
    joined_biases,
    on_our_pixels,
    simmim_names,
    to_our_pixels,
    vit_names,
)

_NAMES = (
    vit_names("blocks", "encoder.blocks")
    | simmim_names("encoder.blocks")
    | {
        r"cls_token": "class_token",
        r"mask_token": "mask_token",
        r"norm\.(weight|bias)": r"encoder.norm.\1",
        r"patch_embed\.proj\.(weight|bias)": r"embedding.\1",
        r"rel_pos_bias\.relative_position_bias_table": "bias.weight",
        r"decoder\.0\.(weight|bias)": r"head.\1",
    }
)
_TABLE = "encoder.rel_pos_bias.relative_position_bias_table"


def simmim(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict with the names and layouts of a `MAE` on pixels in [-1, 1].

    Raises:
        UserError: a key that no SimMIM has.
    """
    bare = {name.removeprefix("encoder."): value for name, value in state.items()}
    ours = joined_biases(renamed(bare, _NAMES, ("relative_position_index",), "SimMIM"))
    ours["embedding.weight"], ours["embedding.bias"] = on_our_pixels(ours["embedding.weight"], ours["embedding.bias"])
    ours["head.weight"], ours["head.bias"] = to_our_pixels(ours["head.weight"], ours["head.bias"])
    return ours | {key: ours[key].flatten() for key in ("class_token", "mask_token")}


@CONVERTERS.register("simmim")
class SimMIMWeights(Converter):
    """SimMIM (microsoft/SimMIM), its ViT pre-trained on ImageNet, for features and pictures of masked pixels."""

    parameters = "86 M (B)"
    licence = "MIT"
    page = "arxiv.org/abs/2111.09886"

    def recognises(self, found: Published) -> bool:
        return {"encoder.mask_token", "encoder.blocks.0.attn.q_bias", _TABLE, "decoder.0.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        state = found.state
        width, _, _, patch = state["encoder.patch_embed.proj.weight"].shape
        side = grid_side(state[_TABLE])
        depth = count(state, "encoder.blocks")
        spec = {
            "type": "mae", "width": width, "depth": depth, "heads": heads_of(width, HEADS), "encoder_sees": "all",
            "positions": "relative", "layer_scale": 0.1, "decoder": {"type": "linear"},
        }  # fmt: skip
        tree = shipped("image/imagenet-simmim-b", model=spec, tokenizer={"type": "patches", "size": patch})
        return image_target(tree, (side, side), pixels=patch, n_classes=0, token_width=3 * patch**2)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return simmim(found.state)
