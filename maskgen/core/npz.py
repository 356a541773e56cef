"""Arrays of an .npz file from outside: headers are checked before anything is allocated, and nothing is unpickled."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskgen.core.errors import UserError, first_line
from maskgen.core.terminal import printable

DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError),
    *(SyntaxError, TypeError, tokenize.TokenError),  # of NumPy's reader of headers
)
"""Errors of a file that is cut off, altered, encrypted, or no archive at all."""


def read_npz(path: Path, names: Iterable[str], kinds: str = "fiub") -> dict[str, npt.NDArray[np.generic]]:
    """Some arrays of an .npz file; names that it does not hold are left out.

    Args:
        path: the file.
        names: of the arrays.
        kinds: NumPy's letters of the types that are accepted: numbers by default, "U" for text.

    Raises:
        UserError: no archive, damaged, an array of another kind, or a header that does not fit the array's bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: f"{name}.npy" for name in names if f"{name}.npy" in archive.namelist()}
            return {name: _array(archive, member, kinds) for name, member in found.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or no .npz archive: {printable(first_line(error))}") from None


def _array(archive: zipfile.ZipFile, member: str, kinds: str) -> npt.NDArray[np.generic]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.kind not in kinds or dtype.hasobject:
            raise UserError(f"{printable(member)} holds {printable(str(dtype))}, not numbers")
        given = archive.getinfo(member).file_size - file.tell()
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != given:
            raise UserError(f"{printable(member)} is damaged: its header says {dtype} {shape}, it has {given:,} bytes")
        data = file.read(given)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.copy()
