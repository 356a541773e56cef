"""Images as uint8 and as floating point numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images float in [0, 1] -> uint8, rounded to the nearest and clipped; any shape.

    Raises:
        ValueError: images that are not floating point, or hold NaN.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floating point images in [0, 1], got {images.dtype}")
    if bool(images.isnan().any()):
        raise ValueError("images hold NaN; as bytes they would pass for black")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Images uint8 -> float32 in [0, 1]; any shape. `to_uint8` undoes it exactly."""
    return images.float() / 255
