"""Sets of images that are scored as they are: in memory, a split of a data set, a folder of files."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskgen.core.errors import first_line
from maskgen.core.files import open_regular
from maskgen.core.rng import Rng
from maskgen.core.terminal import printable
from maskgen.data.base import DataError, ImageSplit
from maskgen.data.image.pictures import SUFFIXES, opened
from maskgen.data.listing import LeftOut, ending_of, list_files

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

log = logging.getLogger(__name__)


class ImageSet(ABC):
    """Images in a fixed order.

    Attributes:
        name: the user's spelling of it.
        format: `png`, `jpeg+png`, `npz`, ...: lossy files score differently.
        labels: (N,) int64 where images have some.
    """

    name: str
    format: str
    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: range) -> list[Tensor]:
        """Consecutive images, each (1 or 3, H, W) uint8.

        Raises:
            DataError: one that is missing, damaged or not of 8 bits; the message names it.
        """

    @abstractmethod
    def label(self, row: int) -> str:
        """Name of an image in messages."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over the images as they are stored."""

    def batches(self, size: int, rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """First row and images (B, C, H, W) uint8, B <= size: batches end where the shape changes. Rows must ascend."""
        for start, stop in _runs(rows, size):
            images = self.read(range(start, stop))
            first = 0
            for row in range(1, len(images) + 1):
                if row == len(images) or images[row].shape != images[first].shape:
                    yield start + first, torch.stack(images[first:row])
                    first = row


class ArraySet(ImageSet):
    """Images in memory, (N, C, H, W) uint8."""

    format = "array"

    def __init__(self, images: Tensor, name: str = "images") -> None:
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: range) -> list[Tensor]:
        return list(self.images[rows.start : rows.stop])

    def label(self, row: int) -> str:
        return f"{self.name}[{row}]"

    def digest(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


class SplitSet(ImageSet):
    """The images of a data set's split: all, or `most` of them from all over it, always the same (data come sorted)."""

    format = "data set"

    def __init__(self, split: ImageSplit, name: str, most: int | None = None) -> None:
        self.split, self.name = split, name
        self.n = min(len(split), most or len(split))
        self.rows = torch.arange(len(split))
        if self.n < len(split):
            self.rows = Rng.stream("rows of a split").permutation(1, len(split))[0][: self.n].sort().values
        self.labels = split.labels[self.rows]

    def __len__(self) -> int:
        return self.n

    def read(self, rows: range) -> list[Tensor]:
        return list(self.split.__getitems__(self.rows[rows.start : rows.stop].tolist())[0])

    def label(self, row: int) -> str:
        return f"{self.name}[{row}]"

    def digest(self) -> str:
        rows = "" if self.n == len(self.split) else f" {hashlib.sha256(self.rows.numpy().data).hexdigest()}"
        return hashlib.sha256(f"{self.split.fingerprint()} {self.n}{rows}".encode()).hexdigest()


class FolderSet(ImageSet):
    """Image files below a folder, sorted by path."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        found = list_files(root, SUFFIXES)
        self.files = found.files
        self.format = formats_of([file.name for file in self.files], name, found.left_out)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: range) -> list[Tensor]:
        return [read_pixels(self.root / self.files[row], self.label(row)) for row in rows]

    def label(self, row: int) -> str:
        return printable(str(self.root / self.files[row]))

    def digest(self) -> str:
        digest = hashlib.sha256()
        for row, file in enumerate(self.files):
            try:
                with os.fdopen(open_regular(self.root / file), "rb") as raw:
                    add_file(digest, file.as_posix(), os.fstat(raw.fileno()).st_size, raw)
            except OSError as error:
                raise DataError(f"{self.label(row)} cannot be read: {error.strerror or error}") from None
        return digest.hexdigest()


def read_pixels(file: Path | IO[bytes], name: str) -> Tensor:
    """A picture as stored, grey (1, H, W) or RGB (3, H, W) uint8; not turned, no background, as the packages do.

    Raises:
        DataError: missing, damaged, no image, or more than 8 bits a channel, which conversion would clip.
    """
    try:
        with opened(file) as image:
            mode = image.mode
            if not mode.startswith(("I", "F")):
                pixels = torch.from_numpy(np.array(image.convert("L" if mode in ("L", "1") else "RGB")))
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise DataError(f"{name} is not a readable image: {first_line(error)}; repair or remove it") from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of mode {mode}; only 8 bits a channel can be scored, convert it first")
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def formats_of(names: list[str], source: str, left_out: LeftOut) -> str:
    """`jpeg+png`, the formats of image files; what was left out is logged."""
    if not names:
        because = f" ({left_out})" if str(left_out) else ""
        raise DataError(f"{source} holds no image{because}; known endings are {', '.join(sorted(SUFFIXES))}")
    if str(left_out):
        _warn(f"{printable(source)}: {left_out}")
    return "+".join(sorted({ending_of(name).lstrip(".").replace("jpg", "jpeg") for name in names}))


@cache
def _warn(text: str) -> None:
    """Log a line once in a process."""
    log.warning("%s", text)


def add_file(digest: Hash, name: str, size: int, file: IO[bytes]) -> None:
    """Add name, size and content of a file to a digest, piece by piece."""
    digest.update(os.fsencode(name) + f" {size} ".encode())
    while piece := file.read(2**20):
        digest.update(piece)


def _runs(rows: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Ascending rows as consecutive pieces (start, stop) of at most `size`."""
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1 or place - start == size:
            yield rows[start], rows[place - 1] + 1
            start = place
