"""The public layout of MAGE's weights (LTH14/mage) -> `maskgen.models.mage.Mage`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import vit_names

HEADS = {768: 12, 1024: 16}
"""Heads of the encoder of the published widths, which the weights do not determine."""
DECODER_HEADS = 16
FAKE_CLASS, EXTRA_ROWS = 1100, 1001
"""Row of the constant class token, and rows of the table beside the codes: 1,000 classes and [MASK], the last."""

_WORDS = "token_emb.word_embeddings.weight"
_PAIR = r"(weight|bias)"
_NAMES = {
    r"token_emb\.position_embeddings\.weight": "positions",
    r"decoder_pos_embed_learned": "decoder_positions",
    r"mlm_layer\.bias": "head.bias",
    rf"token_emb\.LayerNorm\.{_PAIR}": r"embedding_norm.\1",
    rf"norm\.{_PAIR}": r"encoder.norm.\1",
    rf"decoder_embed\.{_PAIR}": r"decoder.project.\1",
    rf"decoder_norm\.{_PAIR}": r"decoder.norm.\1",
    rf"mlm_layer\.fc\.{_PAIR}": r"head.dense.\1",
    rf"mlm_layer\.ln\.{_PAIR}": r"head.norm.\1",
    **vit_names("blocks", "encoder.blocks"),
    **vit_names("decoder_blocks", "decoder.blocks"),
}
_UNUSED = (
    "cls_token",
    "pos_embed",
    "mask_token",
    "patch_embed.proj",
    "decoder_pred",
    "token_emb.position_ids",
    "vqgan",
)
"""Parts that the published network does not use, and its tokenizer, which is a checkpoint of its own."""


def mage(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `Mage`.

    Raises:
        UserError: a key that no MAGE has.
    """
    used = {key: value for key, value in state.items() if not _is_unused(key)}
    ours = renamed(used, _NAMES, (_WORDS,), "MAGE")
    ours["decoder_positions"] = ours["decoder_positions"][0]
    ours["embedding.weight"], ours["head.bias"] = _rows(state[_WORDS]), _rows(ours["head.bias"].flatten())
    return ours


def _is_unused(key: str) -> bool:
    names = (key, key.removeprefix("decoder_"))
    return any(name == part or name.startswith(f"{part}.") for name in names for part in _UNUSED)


def _rows(table: Tensor) -> Tensor:
    """Rows as here: codes, [MASK], the class token, and the others, which are not used."""
    n_codes = len(table) - EXTRA_ROWS
    class_row = n_codes + FAKE_CLASS - 1024
    rest = [table[n_codes:class_row], table[class_row + 1 : -1]]
    return torch.cat([table[:n_codes], table[-1:], table[class_row : class_row + 1], *rest])


@CONVERTERS.register("mage")
class MageWeights(Converter):
    """MAGE (LTH14/mage), generation without classes and features of ImageNet."""

    parameters = "145 M (ViT-B), 408 M (ViT-L)"
    licence = "MIT"
    page = "arxiv.org/abs/2211.09117"
    needs = "MAGE's VQGAN"

    def recognises(self, found: Published) -> bool:
        return {_WORDS, "decoder_pos_embed_learned", "mlm_layer.bias"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        width = found.state["decoder_pos_embed_learned"].shape[-1]
        depth, decoder_depth = (count(found.state, name) for name in ("blocks", "decoder_blocks"))
        rows = len(found.state[_WORDS])
        model = {
            "type": "mage", "width": width, "depth": depth, "heads": heads_of(width, HEADS),
            "decoder_depth": decoder_depth, "decoder_heads": DECODER_HEADS, "dropout": 0.1, "table_rows": rows,
        }  # fmt: skip
        side = math.isqrt(found.state["decoder_pos_embed_learned"].shape[1] - 1)
        recipe = shipped(f"image/imagenet-mage-{'l' if width == 1024 else 'b'}", model=model)
        return image_target(recipe, (side, side), pixels=16, n_classes=0, vocab_size=rows - EXTRA_ROWS)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return mage(found.state)
