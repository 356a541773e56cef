"""Pictures of any usual format as uint8 squares: decoding, orientation, colour, size."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from maskgen.core.errors import first_line
from maskgen.core.files import open_regular
from maskgen.core.terminal import printable
from maskgen.data.base import DataError

Channels = Literal[1, 3]
Crop = Literal["center", "none"]

FORMATS: Mapping[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Formats of Pillow that are read, with their endings; no others are tried, whatever a file is called.

Pillow hands PostScript to the program Ghostscript, and has many decoders of rare formats that are hardly ever tested.
"""

SUFFIXES = frozenset(ending for endings in FORMATS.values() for ending in endings)

MOST_PIXELS = 2**27
"""Pixels of a picture that are decoded, 11,585 x 11,585."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `opened` has the limit

MOST_SCALED = 2**26
"""Pixels that a picture may have after scaling and before it is cropped."""


@contextmanager
def opened(file: Path | IO[bytes]) -> Iterator[Image.Image]:
    """A picture of one of `FORMATS`, not decoded yet.

    Raises:
        OSError: no such file, a pipe or a device, or none of the formats.
        ValueError: more pixels than are decoded.
    """
    if isinstance(file, Path):
        with os.fdopen(open_regular(file), "rb") as raw, opened(raw) as image:
            yield image
        return
    try:
        image = Image.open(file, formats=_readable())
    except UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(_readable())}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than the {MOST_PIXELS:,} pixels that are decoded; scale it down") from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, more than the {MOST_PIXELS:,} that are decoded; "
                "scale it down"
            )
        yield image


@cache
def _readable() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_image(file: Path, size: int, channels: Literal[1, 3], crop: Crop = "center") -> Tensor:
    """The image of a file as (channels, size, size) uint8, see `to_square`.

    Raises:
        DataError: missing, damaged or not an image.
    """
    try:
        with opened(file) as image:
            return to_square(image, size, channels, crop)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        reason = f"{first_line(error)}; repair or remove it"
        raise DataError(f"{printable(str(file))} is not a readable image: {reason}") from error


def decoded(value: object, size: int, channels: Literal[1, 3]) -> Tensor:
    """The image of a cell of a data set, `{"bytes": ..., "path": ...}` of a file, or a picture; see `to_square`.

    Raises:
        ValueError, OSError and others: no picture, or damaged.
    """
    if isinstance(value, Image.Image):
        return to_square(value, size, channels)
    if not isinstance(value, Mapping):
        raise ValueError(f"{type(value).__name__} instead of a picture")
    content = value.get("bytes")
    with opened(Path(value["path"]) if content is None else io.BytesIO(content)) as image:
        return to_square(image, size, channels)


def to_square(image: Image.Image, size: int, channels: Literal[1, 3], crop: Crop = "center") -> Tensor:
    """Any picture as (channels, size, size) uint8, upright, transparent parts on white.

    `center` scales the shorter side to `size` and cuts the middle out; `none` squeezes the whole picture in.
    """
    image = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB" if channels == 3 else "L")
    width, height = image.size
    scaled = (size, size)
    if crop == "center":
        short = min(width, height)
        if (size / short) ** 2 * width * height > MOST_SCALED:  # a line of pixels would become a giant
            left, top = (width - short) // 2, (height - short) // 2
            image = image.crop((left, top, left + short, top + short))
        else:
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
    """Check the side of an image, in pixels.

    Raises:
        DataError: it is below 1 or above what a square of `MOST_SCALED` pixels has.
    """
    if size < 1:
        raise DataError(f"size must be at least 1, got {size}")
    if size**2 > MOST_SCALED:
        raise DataError(f"size must be at most {int(MOST_SCALED**0.5)}, got {size}")


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(N, C, H, W) uint8 -> PIL, grey or RGB."""
    return [Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()) for image in pixels]
