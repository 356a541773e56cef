"""Checkpoint files of torch: tensors and plain settings, never code."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from maskgen.checkpoints.convert.published import Tree
from maskgen.core.errors import UserError

_SCALARS = {type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")}
SETTINGS: list[Any] = [
    argparse.Namespace,
    *((PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath", "Path")),
    *((PureWindowsPath, f"pathlib.{name}") for name in ("WindowsPath", "PureWindowsPath")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *_SCALARS,
]
"""What the settings of a training run may hold beside plain values: paths that touch no disk, numbers of NumPy."""


def read_torch(path: Path) -> Tree:
    """The tree in a .pt, .pth, .ckpt or .bin file, its tensors mapped from the disk where the format allows it.

    Raises:
        UserError: it is damaged, or holds anything but tensors and plain settings.
    """
    with path.open("rb") as file:
        is_mapped = file.read(2) == b"PK"  # the format before torch 1.6 is no archive
    try:
        with torch.serialization.safe_globals(SETTINGS):
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception:  # a damaged or hostile file can raise anything; torch's own message advises to unpickle it
        raise UserError(
            f"{path} cannot be read as tensors and plain settings: it is damaged, or holds code, which is never run"
        ) from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not tensors by name")
    return tree
