"""Checkpoints as files: where they are, and sizes and hashes, taken when written and held against when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from maskgen.core.errors import DiskFull, UserError


class CheckpointError(UserError):
    """A checkpoint that is not there, incomplete or altered; the message names the file."""


_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints_in(directory: Path) -> list[Path]:
    """The `checkpoint-N` of a run directory, lowest N first; half-written ones have another name."""
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_in(directory: Path) -> Path | None:
    """The last of `checkpoints_in`, None if there is none."""
    found = checkpoints_in(directory)
    return found[-1] if found else None


def stamp(path: Path) -> dict[str, object]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(path: Path, expected: Mapping[str, object] | None) -> None:
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


def stamps(directory: Path, without: str) -> dict[str, dict[str, object]]:
    """Stamps of all files below a directory by their relative paths, one left out."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = [path.relative_to(directory).as_posix() for path in files]
    return {name: stamp(directory / name) for name in names if name != without}


def sealed(info: Mapping[str, object]) -> dict[str, object]:
    """Info with a hash of itself, `seal`."""
    plain = {key: value for key, value in info.items() if key != "seal"}
    return {**plain, "seal": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def verify_seal(path: Path, info: Mapping[str, object]) -> None:
    """Hold info against its own hash, where it has one.

    Raises:
        CheckpointError: it is altered.
    """
    if "seal" in info and sealed(info)["seal"] != info["seal"]:
        raise CheckpointError(f"{path} is altered: it is not what its own hash says")


def free_space(directory: Path, n_bytes: int) -> None:
    """Check that `n_bytes` fit on the disk.

    Raises:
        DiskFull: they have not.
    """
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise DiskFull(f"{directory} has {free / 1e6:,.1f} MB free, this needs {n_bytes / 1e6:,.1f} MB")


def flush(directory: Path, *, is_deep: bool = True) -> None:
    """Put a directory on the disk, and all that is in it if deep."""
    for path in [*(directory.rglob("*") if is_deep else ()), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
