"""Parts of a data set that several processes encode, and the concatenation of their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from maskgen.data.base import DataError, ImageSplit


class PartSplit(ImageSplit):
    """The rows of part `index` of `n` consecutive parts of equal size, up to one row."""

    def __init__(self, split: ImageSplit, index: int, n: int) -> None:
        if not 0 <= index < n <= len(split):
            raise DataError(f"part {index} of {n}: there are {len(split)} images, and parts count from 0")
        self.split, self.index, self.n = split, index, n
        self.first, self.last = (len(split) * i // n for i in (index, index + 1))
        self.labels = split.labels[self.first : self.last]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.split.__getitems__([self.first + index for index in indices])

    def name_of(self, row: int) -> str:
        return self.split.name_of(self.first + row)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.split.fingerprint()} part {self.index} of {self.n}".encode()).hexdigest()


class Encoded(Protocol):
    """Encoded rows of a part: tokens or moments."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]: ...


def rows_of(parts: Sequence[Encoded], chunk: int) -> Iterator[Tensor]:
    """The rows of all parts in order, at most `chunk` at a time."""
    for part in parts:
        for first in range(0, len(part), chunk):
            yield torch.as_tensor(part.__getitems__(range(first, min(first + chunk, len(part))))[0])
