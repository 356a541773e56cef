"""Tensors of .safetensors files, mapped from the disk one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskgen.core.errors import UserError, first_line
from maskgen.core.terminal import printable

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Number formats of a safetensors header."""


class _Place(NamedTuple):
    """Where a tensor is: its file, its name there, and itself on the meta device."""

    file: Path
    name: str
    header: Tensor


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of .safetensors files by name, mapped from the disk when they are looked up.

    Every look-up has a mapping of its own, so that a tensor's memory is given back as soon as it is dropped.
    Made by `of` and `of_shards`.
    """

    def __init__(self, places: Mapping[str, _Place]) -> None:
        self._places = dict(places)

    @classmethod
    def of(cls, path: Path) -> StoredTensors:
        """All tensors of one file.

        Raises:
            UserError: it is missing, damaged or cut off.
        """
        return cls({name: _Place(path, name, header) for name, header in _headers(path).items()})

    @classmethod
    def of_shards(cls, homes: Mapping[str, Path]) -> StoredTensors:
        """Tensors of several files: name -> file.

        Raises:
            UserError: a file is missing, damaged or cut off, or lacks one of its tensors.
        """
        headers = {path: _headers(path) for path in dict.fromkeys(homes.values())}
        for name, path in homes.items():
            if name not in headers[path]:
                raise UserError(f"{path} lacks {printable(name)}, which the index says it holds; download it again")
        return cls({name: _Place(path, name, headers[path][name]) for name, path in homes.items()})

    def headers(self) -> dict[str, Tensor]:
        """The tensors on the meta device."""
        return {name: place.header for name, place in self._places.items()}

    def renamed(self, names: Mapping[str, str]) -> StoredTensors:
        """The same tensors under other names: new -> present."""
        return StoredTensors({new: self._places[old] for new, old in names.items()})

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        with safe_open(place.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(place.name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _headers(path: Path) -> dict[str, Tensor]:
    """Names, shapes and types of a .safetensors file on the meta device; its numbers are not read."""
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in TYPES:
                    raise UserError(f"{path}: {printable(name)} is stored as {dtype}, which is not supported")
                found[name] = torch.empty(part.get_shape(), dtype=TYPES[dtype], device="meta")
    except FileNotFoundError:
        raise UserError(f"no file {path}; download the whole checkpoint first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, cut off or no .safetensors file: {first_line(error)}") from None
    return found
