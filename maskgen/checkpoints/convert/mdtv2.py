"""The public layout of MDTv2's weights (sail-sg/MDT) -> `maskgen.models.dit.DiT` with masking `mdt`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target
from maskgen.checkpoints.convert.dit import EMBEDDERS, HEAD, blocks, count, has_variance, latent_target, renamed, sizes
from maskgen.checkpoints.convert.published import Published

_LISTS = {
    "en_inblocks": "trunk.encoder_blocks",
    "en_outblocks": "trunk.late_blocks",  # they come after the first, which is as many
    "de_blocks": "trunk.decoder_blocks",
    "sideblocks": "trunk.side_blocks",
}
_BLOCKS = {
    theirs: ours.replace(".\\1.", ".\\1.block.")
    for name, place in _LISTS.items()
    for theirs, ours in blocks(name, place).items()
}
_MORE = {
    rf"{name}\.(\d+)\.{part}": rf"{place}.\1.{ours}"
    for name, place in _LISTS.items()
    for part, ours in {
        r"attn\.rel_pos_bias\.relative_position_bias_table": "bias.weight",
        r"skip_linear\.weight": "join.weight",
        r"skip_linear\.bias": "join.bias",
    }.items()
}
_SINGLE = {
    r"pos_embed": "positions",
    r"decoder_pos_embed": "trunk.decoder_positions",
    r"mask_token": "trunk.mask_token",
}
COMPUTED = ("relative_position_index",)
"""A formula; the network makes it itself."""


def mdtv2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `DiT` that has learned positions.

    Raises:
        UserError: a key that no MDTv2 has.
    """
    half, ours = count(state, "en_inblocks"), {}
    for key, value in renamed(state, EMBEDDERS | HEAD | _BLOCKS | _MORE | _SINGLE, COMPUTED, "MDTv2").items():
        place, _, rest = key.removeprefix("trunk.late_blocks.").partition(".")
        name = f"trunk.encoder_blocks.{half + int(place)}.{rest}" if key.startswith("trunk.late_blocks.") else key
        ours[name.replace("trunk.side_blocks.0.", "trunk.side_block.")] = value
    for key in ("positions", "trunk.decoder_positions", "trunk.mask_token"):
        ours[key] = ours[key].flatten(0, -2) if key != "trunk.mask_token" else ours[key].flatten()
    return ours


def mdtv2_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits; the decoder's depth is counted."""
    decoder = count(state, "de_blocks")
    depth = count(state, "en_inblocks") + count(state, "en_outblocks") + decoder
    return {
        "type": "dit", **sizes(state), "depth": depth, "has_variance": has_variance(state), "positions": "learned",
        "masking": {"type": "mdt", "version": 2, "depth": decoder},
    }  # fmt: skip


@CONVERTERS.register("mdtv2")
class MDTv2Weights(Converter):
    """MDTv2 (sail-sg/MDT), class-conditional ImageNet."""

    parameters = "38 M (S/2) to 742 M (XL/2)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2303.14389"
    needs = "autoencoder sd-vae-ft-mse"

    def recognises(self, found: Published) -> bool:
        return "en_inblocks.0.attn.qkv.weight" in found.state

    def target(self, found: Published) -> Target:
        return latent_target("image/imagenet-mdtv2-xl", mdtv2_spec(found.state), found.state)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return mdtv2(found.state)
