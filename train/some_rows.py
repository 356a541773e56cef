"""Some rows of a data set, and which of them a process takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from maskgen.data.loader import Rows


def spread(total: int, n: int, rank: int = 0, world: int = 1) -> list[int]:
    """This process's share of n rows at even distances in `total` >= n, which may be sorted by class."""
    return [i * total // n for i in range(rank, n, world)]


@dataclass(frozen=True)
class SomeRows:
    """Some rows of a data set."""

    data: Rows
    index: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.data.__getitems__([self.index[i] for i in indices])
