"""Many images as one picture."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from maskgen.data.image.pictures import to_pil

MIN_TILE = 56
"""Tiles of a grid are enlarged by a whole factor to at least this many pixels."""


def grid(pixels: Tensor, n_columns: int = 0) -> Image.Image:
    """Images (N, C, H, W) uint8 in rows on white, as square as can be or with `n_columns`."""
    factor = max(1, math.ceil(MIN_TILE / pixels.shape[-1]))
    tiles = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    n_columns = n_columns or math.ceil(math.sqrt(len(tiles)))
    gap, n_rows = 2, math.ceil(len(tiles) / n_columns)
    _, channels, height, width = tiles.shape
    size = (channels, n_rows * (height + gap) + gap, n_columns * (width + gap) + gap)
    sheet = torch.full(size, 255, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, n_columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[:, top : top + height, left : left + width] = tile
    return to_pil(sheet[None])[0]
