"""Public ViTs fine-tuned as classifiers from MAE, CrossMAE and SimMIM -> `maskgen.models.vit.ViTClassifier`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import HEADS, grid_side, joined_biases, on_our_pixels, simmim_names, vit_names
from maskgen.recipes.build import DataFacts

_NAMES = (
    vit_names("blocks", "blocks")
    | simmim_names("blocks")
    | {
        r"cls_token": "class_token",
        r"pos_embed": "positions",
        r"patch_embed\.proj\.(weight|bias)": r"embedding.\1",
        r"(?:fc_)?norm\.(weight|bias)": r"norm.\1",
        r"head\.(weight|bias)": r"head.\1",
        r"blocks\.(\d+)\.attn\.relative_position_bias_table": r"biases.\1.weight",
    }
)
_TABLE = "blocks.0.attn.relative_position_bias_table"


def classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `ViTClassifier` on pixels in [0, 1].

    Raises:
        UserError: a key that no such ViT has.
    """
    ours = joined_biases(renamed(state, _NAMES, ("relative_position_index",), "fine-tuned ViT"))
    ours["embedding.weight"], ours["embedding.bias"] = on_our_pixels(ours["embedding.weight"], ours["embedding.bias"])
    if "positions" in ours:
        ours["positions"] = ours["positions"][0]
    return ours | {"class_token": ours["class_token"].flatten()}


class FineTuned(Converter):
    """Base of the layouts of fine-tuned encoders."""

    def is_classifier(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the weights are of a ViT of a class token and a linear head of classes."""
        needed = {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"}
        return needed <= state.keys() and "mask_token" not in state

    def target(self, found: Published) -> Target:
        state = found.state
        width, _, _, patch = state["patch_embed.proj.weight"].shape
        table = state.get(_TABLE)
        side = math.isqrt(state["pos_embed"].shape[1] - 1) if table is None else grid_side(table)
        model = {
            "type": "vit", "width": width, "depth": count(state, "blocks"), "heads": heads_of(width, HEADS),
            "patch": patch,
            "pool": "mean" if "fc_norm.weight" in state else "class",
            "positions": "learned" if table is None else "relative",
            "layer_scale": 0.1 if "blocks.0.gamma_1" in state else 0.0,
        }  # fmt: skip
        size = side * patch
        data = {"type": "folder", "path": "data/imagenet", "size": size}
        facts = DataFacts(len(state["head.weight"]), (3, size, size))
        return Target(shipped("classifier/imagenet-vit-b", model=model, data=data), facts)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return classifier(found.state)


@CONVERTERS.register("mae-finetuned")
class FineTunedMAE(FineTuned):
    """MAE's or CrossMAE's encoder fine-tuned on ImageNet with its classes: a classifier, and features for `probe`."""

    parameters = "22 M (S), 87 M (B), 304 M (L), 632 M (H)"
    licence = "CC BY-NC 4.0"
    page = "arxiv.org/abs/2111.06377"

    def recognises(self, found: Published) -> bool:
        return self.is_classifier(found.state) and {"pos_embed", "blocks.0.attn.qkv.bias"} <= found.state.keys()


@CONVERTERS.register("simmim-finetuned")
class FineTunedSimMIM(FineTuned):
    """SimMIM's ViT fine-tuned on ImageNet with its classes: a classifier, and features for `probe`."""

    parameters = "86 M (B)"
    licence = "MIT"
    page = "arxiv.org/abs/2111.09886"

    def recognises(self, found: Published) -> bool:
        return self.is_classifier(found.state) and {_TABLE, "blocks.0.attn.q_bias"} <= found.state.keys()
