"""The public layout of MDT's weights, version 1 (sail-sg/MDT, branch mdtv1) -> `maskgen.models.dit.DiT`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target
from maskgen.checkpoints.convert.dit import dit_tensors, has_variance, latent_target, sizes
from maskgen.checkpoints.convert.mdtv2 import COMPUTED, learned_flat, mdt_names
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count

_NAMES = mdt_names({"blocks": "trunk.encoder_blocks", "sideblocks": "trunk.side_blocks"})
DECODER = 2
"""Blocks of the published decoder, which the weights do not determine."""


def mdt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, without prefixes, with the names and layouts of a `DiT` that has learned positions.

    Raises:
        UserError: a key that no MDT has.
    """
    ours, depth = {}, count(state, "blocks") - DECODER
    for key, value in dit_tensors(state, _NAMES, COMPUTED, "MDT").items():
        place, _, rest = key.removeprefix("trunk.encoder_blocks.").partition(".")
        is_late = key.startswith("trunk.encoder_blocks.") and int(place) >= depth
        name = f"trunk.decoder_blocks.{int(place) - depth}.{rest}" if is_late else key
        ours[name.replace("trunk.side_blocks.0.", "trunk.side_block.")] = value
    return learned_flat(ours)


def mdt_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits."""
    return {
        "type": "dit", **sizes(state), "depth": count(state, "blocks"), "has_variance": has_variance(state),
        "positions": "learned", "masking": {"type": "mdt", "version": 1, "depth": DECODER},
    }  # fmt: skip


@CONVERTERS.register("mdt")
class MDTWeights(Converter):
    """MDT version 1 (sail-sg/MDT, branch mdtv1), class-conditional ImageNet; a decoder of two blocks."""

    parameters = "36 M (S/2) to 700 M (XL/2)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2303.14389"
    needs = "autoencoder sd-vae-ft-mse"

    def recognises(self, found: Published) -> bool:
        return {"blocks.0.attn.qkv.weight", "sideblocks.0.attn.qkv.weight", "mask_token"} <= found.state.keys()

    def target(self, found: Published) -> Target:
        return latent_target("image/imagenet-mdt-xl", mdt_spec(found.state), found.state)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return mdt(found.state)
