"""The public layouts of MAR's (LTH14/mar) and eMIGM's weights (ML-GSAI/eMIGM) -> `maskgen.models.mar.MAR`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target, image_target, shipped
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count, heads_of, renamed
from maskgen.checkpoints.convert.vit import vit_names
from maskgen.core.errors import UserError

_SINGLE = {
    r"class_emb\.weight": "labels.weight",
    r"fake_latent": "null",
    r"mask_token": "mask_token",
    r"z_proj\.(weight|bias)": r"embedding.\1",
    r"z_proj_ln\.(weight|bias)": r"embedding_norm.\1",
    r"(encoder|decoder)_pos_embed_learned": r"\1_positions",
    r"diffusion_pos_embed_learned": "head_positions",
    r"(encoder|decoder)_norm\.(weight|bias)": r"\1.norm.\2",
    r"decoder_embed\.(weight|bias)": r"decoder.project.\1",
}
_HEAD = {
    rf"diffloss\.net\.{theirs}\.(weight|bias)": rf"head.net.{ours}.\1"
    for theirs, ours in {
        r"time_embed\.mlp\.0": "time.mlp.0",
        r"time_embed\.mlp\.2": "time.mlp.2",
        r"cond_embed": "cond",
        r"input_proj": "embedding",
        r"final_layer\.linear": "head.out",
        r"final_layer\.adaLN_modulation\.1": "head.modulation",
    }.items()
} | {
    rf"diffloss\.net\.res_blocks\.(\d+)\.{theirs}\.(weight|bias)": rf"head.net.blocks.\1.{ours}.\2"
    for theirs, ours in {
        r"in_ln": "norm", r"mlp\.0": "expand", r"mlp\.2": "contract", r"adaLN_modulation\.1": "modulation"
    }.items()
}  # fmt: skip
_NAMES = _SINGLE | _HEAD | vit_names("encoder_blocks", "encoder.blocks") | vit_names("decoder_blocks", "decoder.blocks")
HEADS = {448: 8, 512: 8, 768: 12, 1024: 16, 1280: 16}
"""Heads of the published widths, which the weights do not determine."""
SIZES = {448: "xs", 512: "s", 768: "b", 1024: "l", 1280: "h"}
"""Widths -> the names of the recipes; MAR was published from b on."""
DC_WIDTH, DC_PIXELS = 32, 32
"""Of a token of DC-AE, which eMIGM's networks for 512 pixels have: numbers and side in pixels."""


def mar(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict of MAR, without prefixes, with the names and layouts of a `MAR` with a null of its own.

    Raises:
        UserError: a key that no MAR has.
    """
    ours = renamed(state, _NAMES, (), "MAR")
    for key in ("null", "mask_token"):
        if key in ours:
            ours[key] = ours[key].flatten()
    return {key: value.flatten(0, 1) if key.endswith("positions") else value for key, value in ours.items()}


def emigm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict of eMIGM, whose token of no class is the mask token, stored twice.

    Published averages may hold two versions, as they were averaged apart; the mask token is taken.

    Raises:
        UserError: a key that no eMIGM has.
    """
    ours = mar(state)
    ours.pop("null", None)
    return ours


def mar_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the recipe's `model` that a public state dict fits.

    Raises:
        UserError: a width that was never published.
    """
    if "z_proj.weight" not in state or "diffloss.net.cond_embed.weight" not in state:
        raise UserError("z_proj.weight or diffloss.net.cond_embed.weight is missing; is the file of another network?")
    width, length = len(state["z_proj.weight"]), state["diffusion_pos_embed_learned"].shape[-2]
    head = {
        "type": "diffusion", "width": len(state["diffloss.net.cond_embed.weight"]),
        "depth": count(state, "diffloss.net.res_blocks"),
    }  # fmt: skip
    buffer = state["encoder_pos_embed_learned"].shape[-2] - length
    sizes = {
        "width": width,
        "depth": count(state, "encoder_blocks"),
        "heads": heads_of(width, HEADS),
        "n_buffer": buffer,
    }
    return {"type": "mar", **sizes, "head": head}


def emigm_spec(state: Mapping[str, Tensor]) -> dict[str, object]:
    """As `mar_spec`, with the shared token."""
    return mar_spec(state) | {"null_token": "mask"}


class MARLayout(Converter):
    """What both layouts share."""

    def is_masked_autoregressive(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the weights are of this kind of network at all."""
        needed = {"diffloss.net.cond_embed.weight", "mask_token", "z_proj.weight", "diffusion_pos_embed_learned"}
        return needed <= state.keys()

    def target_of(
        self, recipe: str, spec: Mapping[str, object], state: Mapping[str, Tensor], pixels: int = 16
    ) -> Target:
        """The target of a shipped recipe with another `model`; `pixels` is the side of a token."""
        side = math.isqrt(state["diffusion_pos_embed_learned"].shape[-2])
        n_classes, width = len(state["class_emb.weight"]), state["z_proj.weight"].shape[1]
        tree = shipped(f"image/imagenet-{recipe}", model=spec)
        return image_target(tree, (side, side), pixels=pixels, n_classes=n_classes, token_width=width)


@CONVERTERS.register("mar")
class MARWeights(MARLayout):
    """MAR (LTH14/mar), class-conditional ImageNet; the embedding of no class is a tensor of its own."""

    parameters = "208 M (B) to 943 M (H)"
    licence = "MIT"
    page = "arxiv.org/abs/2406.11838"
    needs = "autoencoder MAR KL-16"

    def recognises(self, found: Published) -> bool:
        return self.is_masked_autoregressive(found.state) and found.state["mask_token"].ndim == 3

    def target(self, found: Published) -> Target:
        spec = mar_spec(found.state)
        return self.target_of(f"mar-{SIZES[max(len(found.state['z_proj.weight']), 768)]}", spec, found.state)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return mar(found.state)


@CONVERTERS.register("emigm")
class EMIGMWeights(MARLayout):
    """eMIGM (ML-GSAI/eMIGM), class-conditional ImageNet; the mask token also stands for no class."""

    parameters = "69 M (XS) to 942 M (H)"
    licence = "MIT"
    page = "arxiv.org/abs/2503.07197"
    needs = "autoencoder MAR KL-16; at 512 pixels DC-AE"

    def recognises(self, found: Published) -> bool:
        return self.is_masked_autoregressive(found.state) and found.state["mask_token"].ndim == 2

    def target(self, found: Published) -> Target:
        spec = emigm_spec(found.state)
        width, token_width = found.state["z_proj.weight"].shape
        if token_width == DC_WIDTH and SIZES[width] != "h":
            return self.target_of(f"emigm-{SIZES[width]}-512", spec, found.state, DC_PIXELS)
        return self.target_of(f"emigm-{SIZES[width]}", spec, found.state)

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return emigm(found.state)
