"""Fingerprint of the files of a data set: names, sizes and contents, not their location or times.

A folder that is copied, moved, linked or named by another path keeps its digest. Up to `WHOLE` bytes in all are read;
of larger data sets `BLOCKS` blocks of each file, spread over it. A change that keeps the size and touches none of these
is not seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from maskgen.core.files import open_regular
from maskgen.core.terminal import printable
from maskgen.data.base import DataError

WHOLE = 2**28
CONTENT = "content-"
"""What a fingerprint of contents begins with; earlier versions counted times of change."""

BLOCK = 2**13
BLOCKS = 4
_CHUNK = 500


def content_digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over name, size and content of files given relative to `root`, in order.

    Raises:
        DataError: a file that cannot be read.
    """
    parts = [files[first : first + _CHUNK] for first in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(16) as pool:  # on a network's disk most of the time is waiting
        sizes = list(chain.from_iterable(pool.map(lambda part: [_size(root / file) for file in part], parts)))
        is_whole = sum(sizes) <= WHOLE
        found = chain.from_iterable(
            pool.map(lambda part: [_digest_of(root / file, is_whole=is_whole) for file in part], parts)
        )
        digest = hashlib.sha256()
        for file, size, content in zip(files, sizes, found, strict=True):
            name = os.fsencode(file.as_posix())
            digest.update(b"%d %b %d " % (len(name), name, size) + content)
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """`content_digest` of every file below a folder, hidden ones left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return content_digest(folder, sorted(path for path in found if not any(part[0] == "." for part in path.parts)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None


def _digest_of(path: Path, *, is_whole: bool) -> bytes:
    digest = hashlib.sha256()
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if is_whole or size <= BLOCKS * BLOCK:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                for index in range(BLOCKS):
                    file.seek((size - BLOCK) * index // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None
    return digest.digest()
