"""What a checkpoint's files must be: sizes and hashes, taken when they are written and held against them when read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgen.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is not there, incomplete or altered; the message names the file."""


def stamp(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(path: Path, expected: Mapping[str, Any] | None) -> None:
    """Hold a file against its stamp.

    Raises:
        CheckpointError: it is missing, truncated or altered.
    """
    if expected is None or not path.is_file():
        raise CheckpointError(f"{path} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{path} is truncated or altered: {size:,} bytes, expected {expected['bytes']:,}")
    if stamp(path)["sha256"] != expected["sha256"]:
        raise CheckpointError(f"{path} is altered: its SHA-256 is not the recorded one")


def flush(directory: Path) -> None:
    """Put a directory and all that is in it on the disk."""
    for path in [*directory.rglob("*"), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
