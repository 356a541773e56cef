"""Images in rows and columns, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.data.image.pictures import to_pil

MIN_TILE = 56
"""Tiles of a sheet are enlarged by a whole factor to at least this many pixels."""

GAP = 2
LABEL_HEIGHT = 14


def grid(pixels: Tensor, n_columns: int = 0, titles: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Images in rows on white.

    Args:
        pixels: (N, C, H, W) uint8.
        n_columns: images in a row; 0 makes the sheet as square as possible.
        titles: written above the columns.
        scale: whole factor by which images are enlarged; None enlarges small ones to 56 pixels.

    Raises:
        UserError: scale below 1.
    """
    if scale is not None and scale < 1:
        raise UserError(f"scale must be at least 1, got {scale}")
    factor = scale or max(1, math.ceil(MIN_TILE / pixels.shape[-1]))
    tiles = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    n_columns = n_columns or math.ceil(math.sqrt(len(tiles)))
    n_rows, top = math.ceil(len(tiles) / n_columns), LABEL_HEIGHT if titles else 0
    _, channels, height, width = tiles.shape
    size = (channels, top + n_rows * (height + GAP) + GAP, n_columns * (width + GAP) + GAP)
    sheet = torch.full(size, 255, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, n_columns)
        y, x = top + GAP + row * (height + GAP), GAP + column * (width + GAP)
        sheet[:, y : y + height, x : x + width] = tile
    image = to_pil(sheet[None])[0]
    for column, title in enumerate(titles):
        _write_title(image, title, GAP + column * (width + GAP), width)
    return image


def _write_title(image: Image.Image, title: str, left: int, width: int) -> None:
    """Write a title of at most `width` pixels at the top, from `left`; what does not fit is cut."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    while title and draw.textlength(title, font) > width:
        title = title[:-1]
    draw.text((left, GAP), title, fill=0 if image.mode == "L" else (0, 0, 0), font=font)
