"""Images and texts on disk: contact sheets, arrays, folders of pictures, text files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.data.image.grid import grid
from maskgen.data.image.pictures import to_pil

SHEETS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Endings of a sheet and the formats that Pillow writes."""

IMAGE_ENDINGS = (*SHEETS, ".npz", "")
TEXT_ENDINGS = (".txt", ".jsonl")


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
