"""From any picture to a uint8 square: orientation, colour, size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from maskgen.data.base import DataError

Channels = Literal[1, 3]
Crop = Literal["center", "none"]


def read_image(file: Path, size: int, channels: Literal[1, 3], crop: Crop = "center") -> Tensor:
    """The image of a file as (channels, size, size) uint8, see `to_square`.

    Raises:
        DataError: missing, damaged or not an image.
    """
    try:
        with Image.open(file) as image:
            return to_square(image, size, channels, crop)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise DataError(f"{file} is not a readable image: {error}; repair or remove it") from error


def to_square(image: Image.Image, size: int, channels: Literal[1, 3], crop: Crop = "center") -> Tensor:
    """Any picture as (channels, size, size) uint8, upright, transparent parts on white.

    `center` scales the shorter side to `size` and cuts the middle out; `none` squeezes the whole picture in.
    """
    image = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB" if channels == 3 else "L")
    width, height = image.size
    scaled = (size, size)
    if crop == "center":
        short = min(width, height)
        scaled = (max(size, round(width * size / short)), max(size, round(height * size / short)))
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    image = image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels)
    return pixels.permute(2, 0, 1).contiguous()  # (C, H, W)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Eight opaque bits a channel: `convert` alone clips 16 bits at 255 and uncovers what transparency hides."""
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def check_size(size: int) -> None:
    """A size an image can have.

    Raises:
        DataError: it can't.
    """
    if size < 1:
        raise DataError(f"size must be at least 1, got {size}")


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(N, C, H, W) uint8 -> PIL, grey or RGB."""
    return [Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()) for image in pixels]
