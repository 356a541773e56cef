"""Pictures on disk: grids, arrays, folders."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic, require_writable
from maskgen.data.image.pictures import to_pil
from maskgen.evaluation.report import require_no_bench

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


def write_images(path: Path, pixels: Tensor, labels: list[int] | None, n_columns: int = 0) -> None:
    """A `.png` grid, an `.npz` with `images` (N, H, W[, 3]) and `labels` (N,), or a folder of numbered PNGs."""
    if path.suffix == ".png":
        with atomic(path) as file:
            grid(pixels, n_columns).save(file, "PNG")
    elif path.suffix == ".npz":
        arrays = {"images": np.stack([np.asarray(image) for image in to_pil(pixels)])}
        if labels is not None:
            arrays["labels"] = np.array(labels)
        with atomic(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    else:
        path.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(to_pil(pixels)):
            with atomic(path / f"{index:05d}.png") as file:
                image.save(file, "PNG")


def check_writable(name: str, endings: tuple[str, ...]) -> Path:
    """The path of an output, known to be writable; `""` among the endings allows a folder.

    Raises:
        UserError: another ending, or nothing can be written there.
    """
    path = Path(name).expanduser()
    if path.suffix not in endings:
        shown = ", ".join(ending or "none for a folder" for ending in endings)
        raise UserError(f"cannot write {name!r}: the ending must be one of: {shown}")
    if path.suffix and path.is_dir():
        raise UserError(f"cannot write {name!r}: it is a directory")
    require_writable(path.parent if path.suffix else path, name)
    if path.suffix == ".json":
        require_no_bench(path)
    if not path.suffix and any(path.glob("*.png")):
        raise UserError(f"cannot write {name!r}: it holds pictures already; choose an empty folder")
    return path
