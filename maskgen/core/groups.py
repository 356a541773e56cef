"""Fixed orders of the tokens of a grid, and groups of them that are generated one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

FixedOrder = Literal["raster", "halton", "qlds"]
PLASTIC = 1.32471795724474602596
"""The real root of x^3 = x + 1: the ratio of Roberts' sequence R2."""
GOLDEN = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class GroupPlan:
    """The positions of a grid in a fixed order, cut into groups of growing size (M2T, arXiv 2304.07313, section 3).

    The first i of S groups hold about L (i / S)^alpha of the L tokens; no group is smaller than the one before it.

    Args:
        grid: (h, w) or (L,).
        order: `raster`; `halton` (Halton-MaskGIT); or `qlds`, Roberts' R2 sequence on the grid (M2T, QLDS).
        n_groups: S.
        alpha: at least 1; with 1 all groups are of about the same size.

    Raises:
        ValueError: an impossible number of groups, alpha or order, or a grid that has no such order.
    """

    grid: tuple[int, ...]
    order: FixedOrder = "qlds"
    n_groups: int = 12
    alpha: float = 2.2

    def __post_init__(self) -> None:
        if self.order not in get_args(FixedOrder):
            raise ValueError(f"order must be one of {', '.join(get_args(FixedOrder))}, got {self.order!r}")
        if len(self.grid) > 2 and self.order != "raster":
            raise ValueError(f"order {self.order} is defined on grids of one or two dimensions, got {self.grid}")
        if not 1 <= self.n_groups <= self.length:
            raise ValueError(f"n_groups must lie in 1 ... {self.length}, the number of tokens, got {self.n_groups}")
        if not self.alpha >= 1:
            raise ValueError(f"alpha must be at least 1, so that no group is smaller than the last, got {self.alpha}")

    @property
    def length(self) -> int:
        """L."""
        return math.prod(self.grid)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each group, ascending."""
        ends = [round(self.length * (i / self.n_groups) ** self.alpha) for i in range(self.n_groups + 1)]
        sizes = sorted(max(end - start, 1) for start, end in pairwise(ends))
        excess = sum(sizes) - self.length
        while excess:  # groups of no token were raised to one: the largest ones give them
            largest = max(range(len(sizes)), key=sizes.__getitem__)
            sizes[largest] -= 1
            excess -= 1
        return tuple(sorted(sizes))

    @cached_property
    def positions(self) -> Tensor:
        """(L,) int64, the flat positions in order."""
        if self.order == "raster":
            return torch.arange(self.length)
        return torch.tensor((halton_order if self.order == "halton" else roberts_order)(self.grid))

    @cached_property
    def index(self) -> Tensor:
        """(L,) int64, the group of each flat position."""
        groups = torch.repeat_interleave(torch.arange(self.n_groups), torch.tensor(self.sizes))
        return torch.empty_like(groups).scatter_(0, self.positions, groups)


@lru_cache(maxsize=32)
def halton_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat positions of a grid (h, w) or (L,) in Halton order, bases 2 and 3, each position once.

    The sequence is continued until every position is covered: the 10,000 points of public code miss six of 64 x 64.
    """
    return _visited(grid, _halton_points(len(grid)))


@lru_cache(maxsize=32)
def roberts_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat positions of a grid (h, w) or (L,) in the order of Roberts' sequence, each position once.

    Point n is frac(1/2 + n / g^k) along axis k = 1, 2, with the plastic number g (golden ratio in one dimension), and
    its cell the nearest one, modulo the size (M2T, arXiv 2304.07313, QLDS).
    """
    return _visited(grid, _roberts_points(len(grid)), is_rounded=True)


def _visited(grid: tuple[int, ...], points: Iterator[tuple[float, ...]], is_rounded: bool = False) -> tuple[int, ...]:
    """Cells in the order in which points of [0, 1)^d first fall into them."""
    seen: dict[int, None] = {}
    while len(seen) < math.prod(grid):
        flat = 0
        for size, place in zip(grid, next(points), strict=True):
            cell = round(size * place) % size if is_rounded else int(size * place)
            flat = flat * size + cell
        seen.setdefault(flat)
    return tuple(seen)


def _halton_points(n_axes: int) -> Iterator[tuple[float, ...]]:
    index = 0
    while True:
        index += 1
        yield tuple(_radical_inverse(index, base) for base in (2, 3)[:n_axes])


def _roberts_points(n_axes: int) -> Iterator[tuple[float, ...]]:
    ratio = PLASTIC if n_axes == 2 else GOLDEN
    index = 0
    while True:
        index += 1
        yield tuple((0.5 + index / ratio**axis) % 1 for axis in range(1, n_axes + 1))


def _radical_inverse(index: int, base: int) -> float:
    """van der Corput's sequence: the digits of `index` mirrored at the radix point."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator = numerator * base + digit
        denominator *= base
    return numerator / denominator
