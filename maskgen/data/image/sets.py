"""Sets of images that are scored as they are: a folder, a zip archive, an .npz file, a split of a data set."""

from __future__ import annotations

import hashlib
import logging
import lzma
import math
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskgen.core.errors import first_line
from maskgen.core.files import local_path, open_regular
from maskgen.core.rng import Rng
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DATASETS, DataError, ImageSource, ImageSplit
from maskgen.data.image.pictures import MOST_PIXELS, SUFFIXES, opened
from maskgen.data.listing import LeftOut, ending_of, is_hidden, list_files

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

ARRAYS = ("images", "arr_0")
"""Names under which an .npz file may hold images: maskgen's, and that of ADM's sample batches."""

MOST_BYTES = 2**29
"""Bytes of an image file in an archive that are unpacked."""

_BAD_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError)
"""Errors of an archive's member: damaged, of an unknown compression, encrypted, cut off."""

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
        self.format = _formats([file.name for file in self.files], name, found.left_out)

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
                    _add(digest, file.as_posix(), os.fstat(raw.fileno()).st_size, raw)
            except OSError as error:
                raise DataError(f"{self.label(row)} cannot be read: {error.strerror or error}") from None
        return digest.hexdigest()


class ZipSet(ImageSet):
    """Image files of a zip archive, sorted by name; nothing is unpacked to disk."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.archive = _open_zip(path)
        left_out = LeftOut()
        self.members: list[zipfile.ZipInfo] = []
        for info in sorted(self.archive.infolist(), key=lambda info: info.filename):
            ending = ending_of(info.filename)
            if info.is_dir() or is_hidden(info.filename.split("/")):
                continue
            if ending in SUFFIXES:
                self.members.append(info)
            else:
                left_out.endings[printable(ending)] += 1
        self.format = _formats([info.filename for info in self.members], name, left_out)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, rows: range) -> list[Tensor]:
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> Tensor:
        with self._open(row) as file:
            return read_pixels(file, self.label(row))

    @contextmanager
    def _open(self, row: int) -> Iterator[IO[bytes]]:
        """A member, unpacked as it is read."""
        info = self.members[row]
        if info.file_size > MOST_BYTES:
            raise DataError(
                f"{self.label(row)} unpacks to {info.file_size:,} bytes, an image file to at most {MOST_BYTES:,}; "
                "remove it"
            )
        try:
            with self.archive.open(info) as file:
                yield file
        except _BAD_MEMBER as error:
            raise DataError(f"{self.label(row)} cannot be read: {error}; make the archive again") from error

    def label(self, row: int) -> str:
        return printable(f"{self.path}:{self.members[row].filename}")

    def digest(self) -> str:
        digest = hashlib.sha256()
        for row, info in enumerate(self.members):
            with self._open(row) as file:
                _add(digest, info.filename, info.file_size, file)
        return digest.hexdigest()


class NpzSet(ImageSet):
    """The image array of an .npz file, (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, read in pieces."""

    format = "npz"

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.archive = _open_zip(path)
        held = {member.removesuffix(".npy") for member in self.archive.namelist()}
        found = [key for key in ARRAYS if key in held]
        if not found:
            names = printable(first_few(sorted(held)) or "nothing")
            raise DataError(f"{path} holds {names}; images are called {' or '.join(ARRAYS)}")
        self.member = f"{found[0]}.npy"
        try:
            self._file = self.archive.open(self.member)  # read forwards, so that its checksum is checked at the end
        except _BAD_MEMBER as error:
            raise DataError(f"{path} is damaged: {error}") from error
        self.shape, self.start = self._header(self._file)

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], int]:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
        except (ValueError, TypeError, RecursionError, MemoryError, *_BAD_MEMBER) as error:
            raise DataError(f"{self.path} is damaged: {first_line(error)}") from error
        is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
        if dtype != np.uint8 or is_fortran or not is_image:
            raise DataError(
                f"{self.path}: {self.member} is {dtype} {shape}; images must be uint8 (N, H, W), (N, H, W, 1) or "
                "(N, H, W, 3), in C order"
            )
        if min(shape) < 1 or math.prod(shape[1:3]) > MOST_PIXELS:
            raise DataError(
                f"{self.path}: {self.member} is {shape}; it must hold images, of at most {MOST_PIXELS:,} pixels each"
            )
        size, declared = self.archive.getinfo(self.member).file_size, file.tell() + math.prod(shape)
        if size != declared:
            raise DataError(f"{self.path} is damaged: {self.member} has {size:,} bytes, its header says {declared:,}")
        return shape, file.tell()

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: range) -> list[Tensor]:
        size = math.prod(self.shape[1:])
        try:
            if self._file.tell() > (place := self.start + rows.start * size):
                self._file = self.archive.open(self.member)
            self._file.seek(place)
            raw = self._file.read(len(rows) * size)
        except _BAD_MEMBER as error:
            raise DataError(f"{self.path} is damaged near image {rows.start}: {error}") from error
        if len(raw) != len(rows) * size:
            raise DataError(f"{self.path} ends within image {rows.start + len(raw) // size} of {len(self)}")
        height, width, channels = (*self.shape[1:], 1)[:3]
        pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(len(rows), height, width, channels)
        return list(pixels.permute(0, 3, 1, 2).contiguous())

    def label(self, row: int) -> str:
        return f"{self.path}[{row}]"

    def digest(self) -> str:
        digest = hashlib.sha256(repr(self.shape).encode())
        for start in range(0, len(self), 256):
            for image in self.read(range(start, min(start + 256, len(self)))):
                digest.update(image.numpy().data)
        return digest.hexdigest()


def open_images(source: str) -> ImageSet:
    """The images of a folder, a `.zip`, an `.npz`, or `DATASET:SPLIT` such as `fashion_mnist:test`.

    Raises:
        DataError: nothing there, or no image in it.
    """
    path = local_path(source)
    if path.is_dir():
        images: ImageSet = FolderSet(path, source)
    elif path.is_file() and path.suffix.lower() in (".zip", ".npz"):
        images = (ZipSet if path.suffix.lower() == ".zip" else NpzSet)(path, source)
    elif (parts := source.partition(":"))[0] in DATASETS.names() and parts[2] in ("train", "test"):
        images = SplitSet(_image_source(parts[0]).split(parts[2]), source)  # type: ignore[arg-type]
    else:
        raise DataError(f"{source!r} is no folder, .zip, .npz or DATASET:SPLIT (fashion_mnist:test)")
    return images


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
        raise DataError(f"{name} is not a readable image: {error}; repair or remove it") from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of mode {mode}; only 8 bits a channel can be scored, convert it first")
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _image_source(name: str) -> ImageSource:
    source: Any = DATASETS.build(name)
    if not isinstance(source, ImageSource):
        raise DataError(f"data set {name} has no images")
    return source


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (*_BAD_MEMBER, ValueError) as error:
        raise DataError(f"{path} is damaged or no archive: {error}") from error


def _formats(names: list[str], source: str, left_out: LeftOut) -> str:
    """`jpeg+png`, the formats of image files; what was left out is logged."""
    if not names:
        because = f" ({left_out})" if str(left_out) else ""
        raise DataError(f"{source} holds no image{because}; known endings are {', '.join(sorted(SUFFIXES))}")
    if str(left_out):
        log.warning("%s: %s", printable(source), left_out)
    return "+".join(sorted({ending_of(name).lstrip(".").replace("jpg", "jpeg") for name in names}))


def _add(digest: Hash, name: str, size: int, file: IO[bytes]) -> None:
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
