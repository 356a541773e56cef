"""Images and texts on disk: contact sheets, arrays, folders of pictures, text files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.data.image.pictures import to_pil

MIN_TILE = 56
"""Tiles of a sheet are enlarged by a whole factor to at least this many pixels."""

GAP = 2
LABEL_HEIGHT = 14
SHEETS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Endings of a sheet and the formats that Pillow writes."""

IMAGE_ENDINGS = (*SHEETS, ".npz", "")
TEXT_ENDINGS = (".txt", ".jsonl")


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


def write_images(
    path: Path,
    pixels: Tensor,
    labels: Sequence[int] | None,
    n_columns: int = 0,
    titles: Sequence[str] = (),
    scale: int | None = None,
) -> None:
    """Write a sheet, an array or a folder of numbered PNG files.

    Args:
        path: `.png`, `.jpg` or `.webp`, a sheet of all images; `.npz` with `images` (N, H, W[, 3]) and `labels`
            (N,); without ending a folder.
        pixels: (N, C, H, W) uint8.
        labels: a class each, None without classes.
        n_columns, titles, scale: of a sheet, see `grid`.

    Raises:
        UserError: another ending.
    """
    if path.suffix.lower() in SHEETS:
        with atomic(path) as file:
            grid(pixels, n_columns, titles, scale).save(file, SHEETS[path.suffix.lower()], quality=95)
    elif path.suffix == ".npz":
        arrays = {"images": np.stack([np.asarray(image) for image in to_pil(pixels)])}
        if labels is not None:
            arrays["labels"] = np.array(labels)
        with atomic(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    elif path.suffix:
        raise UserError(f"cannot write {str(path)!r}: the ending must be {', '.join(SHEETS)}, .npz, or none (a folder)")
    else:
        path.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(to_pil(pixels)):
            with atomic(path / f"{index:05d}.png") as file:
                image.save(file, "PNG")


def write_texts(path: Path, texts: Sequence[str], seeds: Sequence[int]) -> None:
    """Write a `.txt` with a line between two texts, or a `.jsonl` of objects with `seed` and `text`.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in TEXT_ENDINGS:
        raise UserError(f"cannot write {str(path)!r}: the ending must be {' or '.join(TEXT_ENDINGS)}")
    if path.suffix == ".jsonl":
        rows = zip(seeds, texts, strict=True)
        lines = [json.dumps({"seed": seed, "text": text}, ensure_ascii=False) for seed, text in rows]
        content = "\n".join(lines) + "\n"
    else:
        content = "\n\n----\n\n".join(texts) + "\n"
    with atomic(path) as file:
        file.write(content.encode())
