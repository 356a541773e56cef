"""The public layout of MDTv2's weights (sail-sg/MDT) -> `maskgen.models.dit.DiT` with masking `mdt`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target
from maskgen.checkpoints.convert.dit import EMBEDDERS, HEAD, dit_blocks, dit_tensors, has_variance, latent_target, sizes
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count

_LISTS = {
    "en_inblocks": "trunk.encoder_blocks",
    "en_outblocks": "trunk.late_blocks",  # they come after the first, which is as many
    "de_blocks": "trunk.decoder_blocks",
    "sideblocks": "trunk.side_blocks",
}
_SINGLE = {
    r"pos_embed": "positions",
    r"decoder_pos_embed": "trunk.decoder_positions",
    r"mask_token": "trunk.mask_token",
}
COMPUTED = ("relative_position_index",)
"""A formula; the network makes it itself."""


def mdt_names(lists: Mapping[str, str]) -> dict[str, str]:
    """Patterns of all tensors of an MDT with these lists of blocks: theirs -> ours."""
    found = EMBEDDERS | HEAD | _SINGLE
    for theirs, ours in lists.items():
        found |= {name: place.replace(".\\1.", ".\\1.block.") for name, place in dit_blocks(theirs, ours).items()}
        found |= {
            rf"{theirs}\.(\d+)\.attn\.rel_pos_bias\.relative_position_bias_table": rf"{ours}.\1.bias.weight",
            rf"{theirs}\.(\d+)\.skip_linear\.(weight|bias)": rf"{ours}.\1.join.\2",
        }
    return found


def learned_flat(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions (1, L, D) as (L, D), the mask token (1, 1, D) as (D,)."""
    places = {key: ours[key].flatten(0, 1) for key in ("positions", "trunk.decoder_positions")}
    return ours | places | {"trunk.mask_token": ours["trunk.mask_token"].flatten()}


def mdtv2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `DiT` that has learned positions.

    Raises:
        UserError: a key that no MDTv2 has.
    """
    half, ours = count(state, "en_inblocks"), {}
    for key, value in dit_tensors(state, mdt_names(_LISTS), COMPUTED, "MDTv2").items():
        place, _, rest = key.removeprefix("trunk.late_blocks.").partition(".")
        name = f"trunk.encoder_blocks.{half + int(place)}.{rest}" if key.startswith("trunk.late_blocks.") else key
        ours[name.replace("trunk.side_blocks.0.", "trunk.side_block.")] = value
    return learned_flat(ours)


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
