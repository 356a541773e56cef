"""Tensors of .safetensors files, mapped from the disk one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

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


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of .safetensors files by name, mapped from the disk when they are looked up.

    Every look-up has a mapping of its own, so that a tensor's memory is given back as soon as it is dropped.

    Args:
        homes: name -> file.

    Raises:
        UserError: a file is missing, damaged or cut off, or lacks one of its tensors.
    """

    def __init__(self, homes: Mapping[str, Path]) -> None:
        self._homes = dict(homes)
        self._headers: dict[str, Tensor] = {}
        for path in dict.fromkeys(self._homes.values()):
            headers = _headers(path)
            for name in (name for name, home in self._homes.items() if home == path):
                if name not in headers:
                    raise UserError(f"{path} lacks {printable(name)}, which the index says it holds; download it again")
                self._headers[name] = headers[name]

    @classmethod
    def of(cls, path: Path) -> StoredTensors:
        """All tensors of one file."""
        return cls(dict.fromkeys(_headers(path), path))

    def headers(self) -> dict[str, Tensor]:
        """The tensors on the meta device."""
        return dict(self._headers)

    def renamed(self, names: Mapping[str, str]) -> StoredTensors:
        """The same tensors under other names: new -> present."""
        view = StoredTensors({})
        view._homes = {new: self._homes[old] for new, old in names.items()}
        view._headers = {new: self._headers[old] for new, old in names.items()}
        view._stored = {new: self._stored.get(old, old) for new, old in names.items()}
        return view

    _stored: Mapping[str, str] = {}
    """Names in the files, where they differ."""

    def __getitem__(self, name: str) -> Tensor:
        home = self._homes[name]
        with safe_open(home, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self._stored.get(name, name))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


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
