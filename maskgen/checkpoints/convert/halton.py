"""The public layout of Halton-MaskGIT's weights (valeoai/Halton-MaskGIT) -> `maskgen.models.maskgit.MaskGIT`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed

HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published widths, which the weights do not determine (the small network has 6 of 85 channels)."""

_LAYER, _PAIR = r"transformer\.layers\.(\d+)", r"(weight|bias)"
_NAMES = {
    r"tok_emb\.weight": "embedding.weight",
    r"pos_emb\.weight": "positions",
    r"reg_tokens\.weight": "registers",
    r"cls_emb\.weight": "labels.weight",
    r"in_proj\.weight": "patches.joined.weight",
    r"out_proj\.weight": "patches.parted.weight",
    r"head\.bias": "head.bias",
    r"last_norm\.norm_final\.weight": "head.norm.weight",
    r"last_norm\.norm_final\.bias": "head.offset",
    rf"last_norm\.mlp\.1\.{_PAIR}": r"head.modulation.\1",
    rf"{_LAYER}\.mlp\.1\.{_PAIR}": r"modulations.\1.\2",
    rf"{_LAYER}\.ln1\.weight": r"blocks.\1.attention_norm.weight",
    rf"{_LAYER}\.ln2\.weight": r"blocks.\1.mlp_norm.weight",
    rf"{_LAYER}\.attn\.wo\.weight": r"blocks.\1.attention.out.weight",
    rf"{_LAYER}\.ff\.w2\.weight": r"blocks.\1.mlp.contract.weight",
}
_JOINED = (".attn.wq.weight", ".attn.wk.weight", ".attn.wv.weight", ".ff.w1.weight", ".ff.w3.weight")


def halton(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `MaskGIT`; its head is tied.

    Raises:
        UserError: a key that no Halton-MaskGIT has.
    """
    ours = renamed(state, _NAMES, (*_JOINED, "head.weight"), "Halton-MaskGIT")
    for index in range(count(state, "transformer.layers")):
        home = f"transformer.layers.{index}"
        ours[f"blocks.{index}.attention.qkv.weight"] = torch.cat([state[f"{home}.attn.w{one}.weight"] for one in "qkv"])
        ours[f"blocks.{index}.mlp.expand.weight"] = torch.cat([state[f"{home}.ff.w{one}.weight"] for one in "13"])
    if "patches.parted.weight" in ours:
        ours["patches.parted.weight"] = ours["patches.parted.weight"].flatten(1)
    return ours


@CONVERTERS.register("halton")
class HaltonWeights(Converter):
    """Halton-MaskGIT (valeoai/Halton-MaskGIT), class-conditional ImageNet at 256 and 384 pixels."""

    parameters = "23 M (tiny), 69 M (small), 142 M (base), 480 M (large)"
    licence = "MIT"
    page = "arxiv.org/abs/2503.17076"
    needs = "LlamaGen's VQ-16"

    def recognises(self, found: Published) -> bool:
        return {"tok_emb.weight", "pos_emb.weight", "last_norm.norm_final.bias"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        length, width = found.state["pos_emb.weight"].shape
        joined, registers = found.state.get("in_proj.weight"), found.state.get("reg_tokens.weight")
        model = {
            "type": "maskgit", "width": width, "depth": count(found.state, "transformer.layers"),
            "heads": heads_of(width, HEADS), "dropout": 0.1, "norm": "rms", "qk_norm": True, "head": "linear",
            "registers": 0 if registers is None else len(registers),
            "patch": 1 if joined is None else joined.shape[-1],
        }  # fmt: skip
        side, n_classes = math.isqrt(length), len(found.state["cls_emb.weight"]) - 1
        recipe = shipped(f"image/imagenet-halton-maskgit-{'l' if width >= 1024 else 'b'}", model=model)
        n_codes = len(found.state["tok_emb.weight"]) - 1
        return image_target(recipe, (side, side), pixels=16, n_classes=n_classes, vocab_size=n_codes)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return halton(found.state)
