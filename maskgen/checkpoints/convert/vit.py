"""What the public layouts of masked autoencoders share: names of ViT blocks, pixels, positions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.checkpoints.convert.tensor_names import block_names
from maskgen.core.errors import UserError
from maskgen.nn.embeddings import sincos_2d
from maskgen.nn.mixers.relative import N_CLASS

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], red, green and blue: what the public encoders' pixels are normalised by."""
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
"""Heads of the published encoders' widths, which the weights do not determine."""
DECODER_HEADS = {128: 4, 256: 8, 512: 16}
"""The same of their decoders; 128 is of no published file."""
_NORMS = {"norm1": "attention_norm", "norm2": "mlp_norm"}


def vit_names(theirs: str, ours: str) -> dict[str, str]:
    """Patterns of all tensors of a list of ViT blocks."""
    return block_names(theirs, ours, _NORMS)


def simmim_names(ours: str) -> dict[str, str]:
    """Patterns of what SimMIM's `blocks` have beside ViT's: factors of the branches, biases of queries and values."""
    return {
        r"blocks\.(\d+)\.gamma_1": rf"{ours}.\1.layer_scale.attention",
        r"blocks\.(\d+)\.gamma_2": rf"{ours}.\1.layer_scale.mlp",
        r"blocks\.(\d+)\.attn\.(q|v)_bias": rf"{ours}.\1.\2_bias",
    }


def joined_biases(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`q_bias` and `v_bias` of each block in one bias with zeros for the keys, whose bias a softmax does not see."""
    joined = {}
    for name, value in ours.items():
        home, _, part = name.rpartition(".")
        if part == "q_bias":
            biases = [value, torch.zeros_like(value), ours[f"{home}.v_bias"]]
            joined[f"{home}.attention.qkv.bias"] = torch.cat(biases)
        elif part != "v_bias":
            joined[name] = value
    return joined


def grid_side(table: Tensor) -> int:
    """Side of the grid of patches whose relative positions have a table (rows, H)."""
    return (math.isqrt(len(table) - N_CLASS) + 1) // 2


def on_our_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A patch embedding of normalised pixels -> the same of pixels in [-1, 1].

    Args:
        weight: (D, 3, p, p), a convolution.
        bias: (D,).

    Returns:
        Weight (D, 3 p^2) and bias (D,).
    """
    mean, deviation = (weight.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    shift = (weight * ((0.5 - mean) / deviation)).sum((1, 2, 3))
    return (weight / (2 * deviation)).flatten(1), bias + shift


def to_our_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A head that predicts normalised pixels -> the same of pixels in [-1, 1].

    Args:
        weight: (3 p^2, D, 1, 1), a convolution, rows channels first.
        bias: (3 p^2,).

    Returns:
        Weight (3 p^2, D) and bias (3 p^2,).
    """
    mean, deviation = (
        bias.new_tensor(values).repeat_interleave(len(bias) // 3) for values in (MEAN, DEVIATION)
    )  # fmt: skip
    return 2 * deviation[:, None] * weight.flatten(1), 2 * (deviation * bias + mean) - 1


def pixels_last(value: Tensor) -> Tensor:
    """Rows of a head that predicts patches (p, p, 3) -> (3, p, p), as our patches are."""
    rows: Tensor = value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    return rows


def check_class_and_grid(key: str, state: Mapping[str, Tensor]) -> None:
    """Hold stored positions (1, 1 + L, D) of a class token and a square grid against the ones we compute.

    Raises:
        UserError: they are others, as in fine-tuned files, where they were trained.
    """
    value = state[key][0]
    side = round((len(value) - 1) ** 0.5)
    if value.is_meta:
        return
    places = torch.cat([torch.zeros(1, value.shape[1]), sincos_2d((side, side), value.shape[1])])
    if not torch.allclose(value.float(), places, atol=1e-4):
        raise UserError(
            f"{key} holds other positions than the sines and cosines of a grid {side} x {side}; take the pre-trained "
            "file, a fine-tuned one has trained positions"
        )
