"""Pictures on disk: grids, arrays, folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic, local_path, require_writable
from maskgen.data.image.grid import grid
from maskgen.data.image.pictures import to_pil
from maskgen.evaluation.report import require_no_bench


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
    path = local_path(name)
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
