"""Autoencoders of latent diffusion in their original names -> folders of `diffusers.AutoencoderKL`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, DiffusersFolder
from maskgen.checkpoints.convert.published import Published
from maskgen.checkpoints.convert.tensor_names import count
from maskgen.checkpoints.convert.vqgan import taming_names
from maskgen.core.errors import UserError

SCALES = {4: 0.18215, 16: 0.2325}
"""Latent channels -> the factor that brings latents to variance 1: Stable Diffusion's, and MAR's KL-16."""

WHOLE = "first_stage_model."
"""Prefix of the autoencoder in a checkpoint of a whole latent diffusion model."""

_NAMES = [
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.attn\.", r".\1_blocks.\2.attentions."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


def kl_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the names of latent diffusion under those of diffusers, where a decoder's level 0 is the lowest."""
    last, ours = count(state, "decoder.up") - 1, {}
    for key, value in taming_names(state, _NAMES).items():
        name = re.sub(r"\.up_blocks\.(\d+)", lambda match: f".up_blocks.{last - int(match[1])}", key)
        is_matrix = ".attentions." in name and value.ndim == 4
        ours[name] = value.flatten(1) if is_matrix else value  # 1 x 1 convolutions there are linear layers here
    return ours


def kl_config(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The configuration of `AutoencoderKL` that a state fits.

    Raises:
        UserError: latents whose scale was never published.
    """
    channels, levels = state["post_quant_conv.weight"].shape[1], count(state, "encoder.down")
    if channels not in SCALES:
        raise UserError(f"the scale of latents of {channels} channels is not known; known: {[*SCALES]}")
    kinds = {}
    for kind, side, part in (("Down", "encoder", "down"), ("Up", "decoder", "up")):
        attends = any(key.startswith(f"{side}.{part}.{levels - 1}.attn.") for key in state)
        named = [f"{kind}{side.title()}Block2D"] * levels
        lowest = levels - 1 if kind == "Down" else 0
        named[lowest] = f"Attn{named[lowest]}" if attends else named[lowest]
        kinds[f"{part}_block_types"] = named
    return {
        "in_channels": 3, "out_channels": 3, "latent_channels": channels, "scaling_factor": SCALES[channels],
        "block_out_channels": [len(state[f"encoder.down.{n}.block.0.conv1.weight"]) for n in range(levels)],
        "layers_per_block": count(state, "encoder.down.0.block"), "norm_num_groups": 32, **kinds,
    }  # fmt: skip


@CONVERTERS.register("kl")
class OriginalKL(Converter):
    """KL autoencoders of latent diffusion in their original names (SD's VAE, MAR's KL-16): a folder of diffusers."""

    parameters = "66 M (KL-16) to 84 M (SD)"
    licence = "MIT (sd-vae-ft-ema and -mse, KL-16)"
    page = "arxiv.org/abs/2112.10752"

    def recognises(self, found: Published) -> bool:
        state = (found.part(WHOLE) or found).state
        return {"encoder.down.0.block.0.norm1.weight", "post_quant_conv.weight"} <= state.keys() and not any(
            key.startswith("quantize.") for key in state
        )

    def target(self, found: Published) -> DiffusersFolder:
        return DiffusersFolder("AutoencoderKL", kl_config((found.part(WHOLE) or found).state))

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return kl_tensors((found.part(WHOLE) or found).state)
