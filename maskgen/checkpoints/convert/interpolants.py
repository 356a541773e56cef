"""The public layout of the U-ViT of discrete interpolants (CompVis/discrete-interpolants) -> `maskgen.models.uvit`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import vit_names
from maskgen.tokenizers.text.encoder import TextEncoder

HEADS = {512: 8, 1152: 16}
"""Heads of the published widths, which the weights do not determine."""
CLIP, CAPTION_LENGTH = "openai/clip-vit-large-patch14", 77
"""Text encoder of the captions."""

_PAIR = r"(weight|bias)"
_NAMES = {
    r"x_embed\.weight": "embedding.weight",
    r"pos_embed": "positions",
    r"context_embed\.proj\.(weight|bias)": r"captions.\1",
    r"label_emb\.embedding_table\.weight": "labels.weight",
    rf"patch_embed\.proj\.{_PAIR}": r"patches.joined.\1",
    rf"decoder_pred\.{_PAIR}": r"patches.parted.\1",
    rf"final_layer\.{_PAIR}": r"head.\1",
    rf"norm\.{_PAIR}": r"norm.\1",
    rf"skips\.(\d+)\.{_PAIR}": r"skips.\1.\2",
    **vit_names("blocks", "blocks"),
}


def uvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `UViT`; [MASK] is no output here.

    Raises:
        UserError: a key that no such U-ViT has.
    """
    n_half = count(state, "in_blocks")
    ours = renamed({_numbered(key, n_half): value for key, value in state.items()}, _NAMES, (), "discrete U-ViT")
    ours["positions"] = ours["positions"][0]
    for kind in ("weight", "bias"):
        ours[f"head.{kind}"] = ours[f"head.{kind}"][:-1]
        # published rows are ordered by token of the patch, then channel
        rows = ours[f"patches.parted.{kind}"].unflatten(0, (-1, ours["head.weight"].shape[1]))
        ours[f"patches.parted.{kind}"] = rows.transpose(0, 1).flatten(0, 1)
    return ours


def _numbered(key: str, n_half: int) -> str:
    """The name with blocks numbered through: the first half, the middle one, the second half; skips apart."""
    part, _, rest = key.partition(".")
    if part == "mid_block":
        return f"blocks.{n_half}.{rest}"
    if part not in ("in_blocks", "out_blocks"):
        return key
    number, _, rest = rest.partition(".")
    if rest.startswith("skip_linear."):
        return f"skips.{number}.{rest.removeprefix('skip_linear.')}"
    return f"blocks.{int(number) + (n_half + 1 if part == 'out_blocks' else 0)}.{rest}"


@CONVERTERS.register("interpolants")
class InterpolantWeights(Converter):
    """U-ViT of discrete interpolants (CompVis/discrete-interpolants), classes or captions, implicit time."""

    parameters = "77 M (S-deep/2, captions), 547 M (H/2, classes)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2412.06787"
    needs = (
        "LDM's vq-f8; with captions CLIP ViT-L/14 in folders text_encoder and tokenizer beside the file, for guidance"
    )

    def recognises(self, found: Published) -> bool:
        return {"x_embed.weight", "mid_block.norm1.weight", "decoder_pred.weight"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        state = found.state
        rows, width = state["x_embed.weight"].shape
        table, patch = state.get("label_emb.embedding_table.weight"), state["patch_embed.proj.weight"].shape[-1]
        captions = _caption_shape(state)
        n_classes = 0 if table is None else len(table) - 1
        n_condition = captions[0] if captions else int(n_classes > 0)
        side = patch * math.isqrt(state["pos_embed"].shape[1] - 1 - n_condition)
        depth = 2 * count(state, "in_blocks") + 1
        model = {"type": "uvit", "width": width, "depth": depth, "heads": heads_of(width, HEADS), "patch": patch}
        recipe = shipped("image/imagenet-uvit-interpolants", model=model, **(_captioned(found) if captions else {}))
        sizes = {"n_classes": n_classes, "vocab_size": rows - 1}
        return image_target(recipe, (side, side), pixels=8, caption_shape=captions, **sizes)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        ours, shape = uvit(found.state), _caption_shape(found.state)
        if shape is not None:
            is_known = _has_encoder(found) and not ours["positions"].is_meta
            empty = _encoder(found).empty() if is_known else torch.zeros(shape, device=ours["positions"].device)
            ours["null_caption.value"] = empty
        return ours


def _caption_shape(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(S, C) of captions, CLIP's; None without."""
    projection = state.get("context_embed.proj.weight")
    return None if projection is None else (CAPTION_LENGTH, projection.shape[1])


def _captioned(found: Published) -> dict[str, object]:
    """Parts of the recipe of a network that takes captions; no guidance where the empty text's embedding is unknown."""
    is_known = _has_encoder(found)
    source = {"encoder": str(found.folder), "subfolder": "text_encoder"} if is_known else {"encoder": CLIP}
    dropout = 0.1 if is_known else 0.0
    return {
        "data": {"type": "captioned_folder", "path": "data/captioned", "size": 256},
        "captions": {**source, "length": CAPTION_LENGTH, "padding": "keep"},
        "objective": {"type": "masked_tokens", "label_dropout": dropout, "sampling_eps": 1e-3},
        "guidance": {"scale": 2.0 if is_known else 1.0},
    }


def _has_encoder(found: Published) -> bool:
    return found.folder is not None and (found.folder / "text_encoder" / "config.json").is_file()


def _encoder(found: Published) -> TextEncoder:
    return TextEncoder(str(found.folder), CAPTION_LENGTH, "keep", "text_encoder")
