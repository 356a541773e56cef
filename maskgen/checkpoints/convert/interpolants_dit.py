"""The public layout of the DiT of discrete interpolants (CompVis/discrete-interpolants) -> `models.discrete_dit`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.dit import HEAD, check_positions, dit_blocks
from maskgen.checkpoints.convert.interpolants import HEADS
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.core.errors import UserError

_NAMES = (
    HEAD
    | dit_blocks("blocks", "trunk.blocks")
    | {
        r"x_pre_embed\.weight": "embedding.weight",
        r"patch_embed\.proj\.(weight|bias)": r"joined.\1",
        r"t_embedder\.mlp\.([02])\.(weight|bias)": r"time.mlp.\1.\2",
        r"y_embedder\.embedding_table\.weight": "labels.weight",
    }
)


def discrete_dit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names of a `DiscreteDiT`; [MASK] is no output here.

    Raises:
        UserError: a key that no such DiT has, or positions that are not the fixed ones.
    """
    check_positions("pos_embed", state)
    rows = len(state["x_pre_embed.weight"])
    heads = {f"final_layer.linear.{kind}": state[f"final_layer.linear.{kind}"] for kind in ("weight", "bias")}
    ours = renamed({key: v for key, v in state.items() if key not in heads}, _NAMES, ("pos_embed",), "discrete DiT")
    for key, value in heads.items():  # rows are ordered by token of the patch, then id
        if len(value) % rows:
            raise UserError(f"{key} has {len(value)} rows, no multiple of the {rows} tokens; is the file another one?")
        ours[key.replace("final_layer.linear", "trunk.head.out")] = value.unflatten(0, (-1, rows))[:, :-1].flatten(0, 1)
    return ours


@CONVERTERS.register("interpolants-dit")
class InterpolantDiT(Converter):
    """DiT of discrete interpolants (CompVis/discrete-interpolants), class-conditional ImageNet, implicit time."""

    parameters = "775 M (XL/2)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2412.06787"
    needs = "LDM's vq-f8"

    def recognises(self, found: Published) -> bool:
        return {"x_pre_embed.weight", "patch_embed.proj.weight", "blocks.0.adaLN_modulation.1.weight"} <= (
            found.state.keys()
        )

    def target(self, found: Published) -> Target:
        state = found.state
        rows, width = state["x_pre_embed.weight"].shape
        if "pos_embed" not in state:
            raise UserError("pos_embed is missing; is the file of another network?")
        patch = state["patch_embed.proj.weight"].shape[-1]
        side = patch * math.isqrt(state["pos_embed"].shape[1])
        table = state.get("y_embedder.embedding_table.weight")
        model = {
            "type": "discrete_dit", "width": width, "depth": count(state, "blocks"), "heads": heads_of(width, HEADS),
            "patch": patch,
        }  # fmt: skip
        recipe = shipped("image/imagenet-dit-interpolants", model=model)
        n_classes = 0 if table is None else len(table) - 1
        return image_target(recipe, (side, side), pixels=8, n_classes=n_classes, vocab_size=rows - 1)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return discrete_dit(found.state)
