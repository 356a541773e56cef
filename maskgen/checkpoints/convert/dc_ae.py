"""DC-AE in its original names (mit-han-lab/efficientvit) -> folders of `diffusers.AutoencoderDC`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, DiffusersFolder
from maskgen.checkpoints.convert.published import Published
from maskgen.core.errors import UserError

SCALES = {
    ("in", 32): 0.3189, ("mix", 32): 0.4552, ("sana", 32): 0.41407, ("in", 64): 0.2889, ("mix", 64): 0.4538,
    ("in", 128): 0.4883, ("mix", 128): 0.3620,
}  # fmt: skip
"""Data and pixels a latent's side -> the factor that brings latents to variance 1; the weights do not tell it."""


def dc_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names of diffusers, by the library's own table; unknown names stay what they are."""
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    found: dict[str, Tensor] = convert_autoencoder_dc_checkpoint_to_diffusers(dict(state))
    return found


def dc_config(state: Mapping[str, Tensor], data: str | None) -> dict[str, object]:
    """The configuration of `AutoencoderDC` that a state fits.

    Args:
        state: in original names.
        data: what it was trained on, `in`, `mix` or `sana`.

    Raises:
        UserError: latents whose scale is not known.
    """
    side = 2 ** (_n_stages(state, "decoder") - 1)
    scale = SCALES.get((data or "", side))
    if scale is None:
        names = ", ".join(f"dc-ae-f{pixels}...-{kind}-1.0" for kind, pixels in SCALES)
        raise UserError(
            "the scale of DC-AE's latents is not in its weights: keep the published name of the file or its folder: "
            f"{names}"
        )
    is_strided = "encoder.stages.0.op_list.0.main.conv1.conv.weight" in state  # the first stage has blocks (Sana)
    config: dict[str, object] = {
        "in_channels": 3, "latent_channels": len(state["encoder.project_out.main.op_list.0.conv.weight"]),
        "attention_head_dim": 32, "upsample_block_type": "interpolate" if is_strided else "pixel_shuffle",
        "downsample_block_type": "Conv" if is_strided else "pixel_unshuffle", "scaling_factor": scale,
    }  # fmt: skip
    return config | _side_config(state, "encoder") | _side_config(state, "decoder")


def _side_config(state: Mapping[str, Tensor], side: str) -> dict[str, object]:
    """Keys of the encoder or decoder."""
    stages = [_stage(state, side, index) for index in range(_n_stages(state, side))]
    widths = [width for width, *_ in stages]
    widths[0] = widths[0] or widths[1] // 2  # a first stage without blocks has no tensors
    config: dict[str, object] = {
        f"{side}_block_types": ["EfficientViTBlock" if is_vit else "ResBlock" for _, _, is_vit, _, _ in stages],
        f"{side}_block_out_channels": widths,
        f"{side}_layers_per_block": [depth for _, depth, *_ in stages],
        f"{side}_qkv_multiscales": [kernels for *_, kernels, _ in stages],
    }
    if side == "decoder":
        has_batch_norm = [is_batch for *_, is_batch in stages]
        has_batch_norm[0] = has_batch_norm[0] or (not stages[0][1] and has_batch_norm[1])
        config["decoder_norm_types"] = ["batch_norm" if one else "rms_norm" for one in has_batch_norm]
        config["decoder_act_fns"] = ["relu" if one else "silu" for one in has_batch_norm]
    return config


def _n_stages(state: Mapping[str, Tensor], side: str) -> int:
    """Stages of the encoder or decoder; the first may have no tensors."""
    return 1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"{side}.stages."))


def _stage(state: Mapping[str, Tensor], side: str, index: int) -> tuple[int, int, bool, list[int], bool]:
    """(width, blocks, whether they attend, kernels of their multi-scale projections, whether norms are of a batch)."""
    prefix = rf"{side}\.stages\.{index}\.op_list\.\d+\."
    res = [state[key] for key in state if re.fullmatch(prefix + r"main\.conv1\.conv\.weight", key)]
    vit = [state[key] for key in state if re.fullmatch(prefix + r"context_module\.main\.proj\.conv\.weight", key)]
    projections = prefix + r"context_module\.main\.aggreg\.(\d+)\.0\.weight"
    kernels = {match[1]: state[key].shape[-1] for key in state if (match := re.fullmatch(projections, key))}
    is_batch = any(re.match(prefix, key) and key.endswith("running_mean") for key in state)
    blocks = res or vit
    return (len(blocks[0]) if blocks else 0), len(blocks), bool(vit), list(kernels.values()), is_batch


@CONVERTERS.register("dc-ae")
class OriginalDCAE(Converter):
    """DC-AE in its original names (mit-han-lab/efficientvit), an autoencoder of 32 to 128: a folder of diffusers."""

    parameters = "312 M (f32c32) to 1.4 B (f128c512)"
    licence = "Apache-2.0"
    page = "arxiv.org/abs/2410.10733"

    def recognises(self, found: Published) -> bool:
        needed = {"encoder.project_out.main.op_list.0.conv.weight", "decoder.project_in.main.conv.weight"}
        return needed <= found.state.keys()

    def target(self, found: Published) -> DiffusersFolder:
        return DiffusersFolder("AutoencoderDC", dc_config(found.state, _data(found)))

    def tensors(self, found: Published) -> dict[str, Tensor]:
        return dc_tensors(found.state)


def _data(found: Published) -> str | None:
    """What a published file was trained on, by its name or that of its folder."""
    names = [path.name for file in found.files for path in (file, *list(file.absolute().parents)[:3])]
    known = [match[1] for name in names if (match := re.search(r"dc-ae-f\d+c\d+-(in|mix|sana)-", name))]
    return known[0] if known else None
