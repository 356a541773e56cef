"""Files of JAX and NumPy: flax's msgpack and .npz, as trees of tensors."""

from __future__ import annotations

import importlib
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskgen.checkpoints.convert.published import Tree
from maskgen.core.errors import UserError, first_line
from maskgen.core.npz import read_npz

NDARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Extension types of flax's msgpack: an array is (shape, name of the type, bytes), packed again."""

CHUNKED = "__msgpack_chunked_array__"
TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64")


def read_npz_tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file by name.

    Raises:
        UserError: damaged, or an array that is no numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no .npz archive: {first_line(error)}") from None
    return {name: _tensor(array) for name, array in read_npz(path, names).items()}


def read_msgpack(path: Path) -> Tree:
    """The tree that `flax.serialization` wrote, its arrays as tensors.

    Raises:
        UserError: the package msgpack is not installed, the file is damaged, or it is no tree of arrays.
    """
    try:
        msgpack = importlib.import_module("msgpack")
    except ImportError:
        raise UserError(f"{path} is a file of flax, which needs msgpack: pip install 'maskgen[flax]'") from None

    def decoded(kind: int, data: bytes) -> object:
        return _extension(kind, data, msgpack.unpackb)

    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=decoded, raw=False, strict_map_key=False)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint of flax or torch: {text}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not tensors by name")
    return {str(key): _joined(value) for key, value in tree.items()}


def _extension(kind: int, data: bytes, unpack: Callable[..., tuple[list[int], bytes | str, bytes]]) -> object:
    """An array or a number of flax.

    Raises:
        ValueError: another extension, or a header that does not fit the bytes.
    """
    if kind == COMPLEX:
        return None  # no network of ours has any
    if kind not in (NDARRAY, SCALAR):
        raise ValueError(f"extension type {kind} is not one of flax")
    shape, name, content = unpack(data, raw=True, strict_map_key=False)
    name = name.decode() if isinstance(name, bytes) else name
    if name not in TYPES:
        raise ValueError(f"an array of type {name!r} is not supported")
    dtype = torch.bfloat16 if name == "bfloat16" else _torch_type(name)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array {name} {tuple(shape)} has {len(content):,} bytes")
    if not content:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(tuple(shape))


def _torch_type(name: str) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, name)).dtype


def _joined(tree: object) -> object:
    """A tree with the parts of arrays that were too large for msgpack joined again."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {str(key): _joined(value) for key, value in tree.items()}
    try:
        chunks = [tree["chunks"][str(index)].flatten() for index in range(len(tree["chunks"]))]
        return torch.cat(chunks).view([int(tree["shape"][str(axis)]) for axis in range(len(tree["shape"]))])
    except (KeyError, AttributeError, RuntimeError, TypeError):
        raise UserError("an array in several parts is damaged; download the checkpoint again") from None


def _tensor(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
