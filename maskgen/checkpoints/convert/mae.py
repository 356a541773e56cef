"""The public layouts of MAE's (facebookresearch/mae) and CrossMAE's weights -> `maskgen.models.mae.MAE`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import (
    DECODER_HEADS,
    HEADS,
    check_class_and_grid,
    on_our_pixels,
    pixels_last,
    vit_names,
)

_NAMES = vit_names("blocks", "encoder.blocks") | {
    r"cls_token": "class_token",
    r"norm\.(weight|bias)": r"encoder.norm.\1",
    r"patch_embed\.proj\.(weight|bias)": r"embedding.\1",
    r"mask_token": "mask_token",
    r"decoder_pred\.(weight|bias)": r"head.\1",
}
_JOINT = vit_names("decoder_blocks", "decoder.stack.blocks") | {
    r"decoder_embed\.(weight|bias)": r"decoder.stack.project.\1",
    r"decoder_norm\.(weight|bias)": r"decoder.stack.norm.\1",
}
_CROSS = vit_names("decoder_blocks", "decoder.blocks") | {
    r"decoder_blocks\.(\d+)\.norm1\.(weight|bias)": r"decoder.blocks.\1.cross_norm.\2",
    r"decoder_blocks\.(\d+)\.cross_attn\.(q|kv)\.(weight|bias)": r"decoder.blocks.\1.cross.\2.\3",
    r"decoder_blocks\.(\d+)\.cross_attn\.proj\.(weight|bias)": r"decoder.blocks.\1.cross.out.\2",
    r"decoder_norm\.(weight|bias)": r"decoder.norm.\1",
    r"dec_norms\.(\d+)\.(weight|bias)": r"decoder.memory_norms.\1.\2",
    r"wfm\.linear\.weight": "decoder.mixing",
}
_CROSS_KEY = "decoder_blocks.0.cross_attn.q.weight"


def mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `MAE` on pixels in [-1, 1].

    An encoder alone gets a mask token and a linear head of zeros, which its features do not depend on.

    Raises:
        UserError: a key that no MAE has, or positions that are not the fixed ones.
    """
    for key in {"pos_embed", "decoder_pos_embed"} & state.keys():
        check_class_and_grid(key, state)
    decoder = _CROSS if _CROSS_KEY in state else _JOINT
    ours = renamed(state, _NAMES | decoder, ("pos_embed",), "MAE")
    ours["embedding.weight"], ours["embedding.bias"] = on_our_pixels(ours["embedding.weight"], ours["embedding.bias"])
    if "head.weight" not in ours:
        width = len(ours["embedding.bias"])
        ours["mask_token"] = ours["class_token"].new_zeros(width)
        ours["head.weight"] = torch.zeros_like(ours["embedding.weight"].mT)
        ours["head.bias"] = ours["head.weight"][:, 0].clone()
    else:
        ours |= {key: pixels_last(ours[key]) for key in ("head.weight", "head.bias")}
    return ours | {key: ours[key].flatten() for key in ("class_token", "mask_token")}


def mae_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits.

    Raises:
        UserError: a width that was never published.
    """
    width = len(state["patch_embed.proj.bias"])
    spec: dict[str, object] = {
        "type": "mae", "width": width, "depth": count(state, "blocks"), "heads": heads_of(width, HEADS)
    }  # fmt: skip
    if "mask_token" not in state:
        return spec | {"decoder": {"type": "linear"}, "encoder_sees": "all"}
    inner = state["mask_token"].numel()
    decoder: dict[str, object] = {
        "type": "joint", "width": inner, "depth": count(state, "decoder_blocks"),
        "heads": heads_of(inner, DECODER_HEADS),
    }  # fmt: skip
    if _CROSS_KEY in state:
        has_input = state["wfm.linear.weight"].shape[1] > count(state, "blocks")
        decoder |= {"type": "cross", "reads": "weighted", "reads_input": has_input}
    return spec | {"decoder": decoder}


def encoder_target(recipe: str, spec: Mapping[str, object], state: Mapping[str, Tensor]) -> Target:
    """The target of an encoder of patches of pixels, for `probe` and `features`.

    Args:
        recipe: a shipped one.
        spec: its `model`.
        state: with `pos_embed` (1, 1 + L, D) and the patch embedding as a convolution.
    """
    side, patch = math.isqrt(state["pos_embed"].shape[1] - 1), state["patch_embed.proj.weight"].shape[-1]
    tree = shipped(recipe, model=spec, tokenizer={"type": "patches", "size": patch})
    return image_target(tree, (side, side), pixels=patch, n_classes=0, token_width=3 * patch**2)


class MAELayout(Converter):
    """What both layouts share."""

    def is_encoder(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the weights are of a ViT of a class token and fixed positions, without a classifier."""
        needed = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias"}
        return needed <= state.keys() and "head.weight" not in state

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return mae(found.state)


@CONVERTERS.register("mae")
class MAEWeights(MAELayout):
    """MAE (facebookresearch/mae), pre-trained on ImageNet: with decoder, or the encoder alone."""

    parameters = "112 M (B) to 657 M (H)"
    licence = "CC BY-NC 4.0"
    page = "arxiv.org/abs/2111.06377"

    def recognises(self, found: Published) -> bool:
        return self.is_encoder(found.state) and "norm.weight" in found.state

    def target(self, found: Published) -> Target:
        return encoder_target("image/imagenet-mae-b", mae_spec(found.state), found.state)


@CONVERTERS.register("crossmae")
class CrossMAEWeights(MAELayout):
    """CrossMAE (TonyLianLong/CrossMAE), pre-trained on ImageNet, with its mix of encoder layers."""

    parameters = "29 M (S) to 400 M (L), decoder of 12 blocks"
    licence = "CC BY-NC 4.0"
    page = "arxiv.org/abs/2401.14391"

    def recognises(self, found: Published) -> bool:
        return self.is_encoder(found.state) and {_CROSS_KEY, "wfm.linear.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        return encoder_target("image/imagenet-crossmae-b", mae_spec(found.state), found.state)
