"""Sets of images in one file: a zip archive of image files, an .npz file; both are read piece by piece."""

from __future__ import annotations

import hashlib
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from maskgen.core.errors import first_line
from maskgen.core.npz import DAMAGED
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DataError
from maskgen.data.image.pictures import MOST_PIXELS, SUFFIXES
from maskgen.data.image.sets import ImageSet, add_file, formats_of, read_pixels
from maskgen.data.listing import LeftOut, ending_of, is_hidden

ARRAYS = ("images", "arr_0")
"""Names under which an .npz file may hold images: maskgen's, and that of ADM's sample batches."""

MOST_BYTES = 2**28
"""Bytes of an image file in an archive that are unpacked."""

_BAD_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError)
"""Errors of an archive's member: damaged, of an unknown compression, encrypted, cut off."""


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
        self.format = formats_of([info.filename for info in self.members], name, left_out)

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
                add_file(digest, info.filename, info.file_size, file)
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
        except (*DAMAGED, *_BAD_MEMBER) as error:
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


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (*_BAD_MEMBER, ValueError) as error:
        raise DataError(f"{path} is damaged or no archive: {error}") from error
