"""Strategies that use neither the data nor the network: random, block, grid, color."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.strategies.base import STRATEGIES, Guide, MaskStrategy, at_least_2d, coordinates, line_by_line


@STRATEGIES.register("random")
@dataclass(frozen=True)
class Random(MaskStrategy):
    """Uniformly random order."""

    is_independent: ClassVar[bool] = True

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        return rng.uniform((n_rows, math.prod(grid)))


@STRATEGIES.register("units")
@dataclass(frozen=True)
class Units(MaskStrategy):
    """Squares of tokens, one after another at random (SimMIM, arXiv 2111.09886: 2 x 2 tokens of 16 pixels).

    The last one that a ratio takes may be cut, as counts are exact: whole units need a ratio of so many, 30 / 49
    on 14 x 14 tokens for SimMIM's 0.6. Spans in a text, boxes in a video; those at the border may be smaller.

    Attributes:
        size: side of a square.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        found = rng.uniform((n_rows, *(math.ceil(side / self.size) for side in grid)))
        for axis, side in enumerate(grid, 1):
            found = found.repeat_interleave(self.size, axis).narrow(axis, 0, side)
        return found.flatten(1)


COVERS = 8
"""Blocks are drawn until their areas would cover the grid so many times; what they leave is one last block."""


@STRATEGIES.register("block")
@dataclass(frozen=True)
class Blocks(MaskStrategy):
    """One rectangle after another, of random area, shape and place (BEiT, arXiv 2106.08254, algorithm 1).

    The last one that a ratio takes is filled line by line. Rectangles lie inside the grid, as published, so its middle
    is masked more often than its corners. Spans in a text, boxes in a video.

    Attributes:
        area: least and largest area of a rectangle, as shares of the grid; BEiT's are 16 and 75 of 196 tokens.
        aspect: least ratio of the sides, log-uniform up to its inverse; of d sides, of each to the mean of the next.
    """

    area: tuple[float, float] = (0.08, 0.38)
    aspect: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two shares in (0, 1], the least first, got {self.area}")
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect must be in (0, 1], got {self.aspect}")

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        grid, n = at_least_2d(grid), math.ceil(2 * COVERS / sum(self.area))
        share, *draws = rng.uniform((n_rows, n, 2 * len(grid))).unbind(2)  # (B, n)
        turns, corners = draws[: len(grid) - 1], draws[len(grid) - 1 :]
        sides = self._sides(share, turns, grid)
        inside = torch.ones((), dtype=torch.bool)
        for axis, (side, corner, size) in enumerate(zip(sides, corners, grid, strict=True)):
            start = (corner * (size - side + 1)).floor()[..., None]  # (B, n, 1)
            place = torch.arange(size)
            is_in = (place >= start) & (place < start + side[..., None])  # (B, n, size)
            inside = inside & is_in[(..., *[None] * axis, slice(None), *[None] * (len(grid) - 1 - axis))]
        number = torch.arange(n, dtype=torch.int32)  # half the bytes of int64: it is the hot part
        blocks = torch.where(inside, number.view(-1, *[1] * len(grid)), n).amin(1)  # (B, *grid)
        return (blocks + _lines(n_rows, grid, rng)).flatten(1)

    def _sides(self, share: Tensor, turns: list[Tensor], grid: tuple[int, ...]) -> list[Tensor]:
        """(B, n) whole numbers, the sides of each block along each axis, from uniform draws (B, n)."""
        left = (self.area[0] + (self.area[1] - self.area[0]) * share) * math.prod(grid)  # of the block, over its axes
        sides = []
        for axis, turn in enumerate(turns):
            ratio = self.aspect ** (2 * turn - 1)
            side = ((left * ratio) ** (1 / (len(grid) - axis))).round().clamp(1, grid[axis])
            sides.append(side)
            left = left / side
        return [*sides, left.round().clamp(1, grid[-1])]


def _lines(n_rows: int, grid: tuple[int, ...], rng: Rng) -> Tensor:
    """(B, *grid) in [0, 1): the way through a grid line by line, first or last axis fastest, from any corner."""
    draws = rng.uniform((n_rows, len(grid) + 1)) < 0.5
    *is_reversed, is_first_fastest = draws.view(n_rows, -1, *[1] * len(grid)).unbind(1)  # (B, 1, ...)
    places = [
        torch.where(flip, size - 1 - place, place)
        for flip, size, place in zip(is_reversed, grid, coordinates(grid), strict=True)
    ]
    number = torch.where(is_first_fastest, line_by_line(places[::-1], grid[::-1]), line_by_line(places, grid))
    return number.double() / math.prod(grid)


@STRATEGIES.register("grid")
@dataclass(frozen=True)
class Grid(MaskStrategy):
    """The same part of every cell of a grid, of random period and offset (GridMask, arXiv 2001.04086).

    A square grows from a corner of each cell, all at once; where the count ends inside a step, random cells take it.
    Period 2 at a ratio of 0.75 leaves one token of every 2 x 2; cells and squares have as many axes as the grid.

    Attributes:
        period: least and largest side of a cell, in tokens; one is drawn a row.
    """

    period: tuple[int, int] = (2, 4)

    def __post_init__(self) -> None:
        if not 2 <= self.period[0] <= self.period[1]:
            raise ValueError(f"period must be two whole numbers from 2 on, the least first, got {self.period}")

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        low, high = self.period
        grid = at_least_2d(grid)
        draws = rng.uniform((n_rows, len(grid) + 2)).view(n_rows, -1, *[1] * len(grid))
        size, *offsets, turn = draws.unbind(1)  # (B, 1, ...)
        period = low + (size * (high - low + 1)).long()
        cell = [(x + (draw * period).long()) % period for x, draw in zip(coordinates(grid), offsets, strict=True)]
        square = functools.reduce(torch.maximum, cell)  # (B, *grid): the side, less 1, of the first square with a token
        sizes = [period] * len(grid)
        number = torch.where(turn < 0.5, line_by_line(cell, sizes), line_by_line(cell[::-1], sizes))
        step = square * period ** len(grid) + number
        return (step + rng.uniform(step.shape)).flatten(1)


@STRATEGIES.register("color")
@dataclass(frozen=True)
class Color(MaskStrategy):
    """Filtered noise, its lowest values first (ColorMAE, arXiv 2407.13036).

    With G a Gaussian blur and W white noise: `low` (red) G W; `high` (blue) W - G W; `band` (green) G W - G' W, G' the
    wider blur; `stop` (purple) W less that, brought to a gain of 1 at its peak, so that nothing is left there. Noise is
    drawn beyond the grid, so its law is the same everywhere on it.

    Attributes:
        color: as above. The paper found `band` best.
        sigma: of the blur, in tokens.
        wide: of the wider one, for `band` and `stop`.
    """

    color: Literal["low", "high", "band", "stop"] = "band"
    sigma: float = 1.0
    wide: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < self.wide:
            raise ValueError(f"sigma must be positive and below wide, got {self.sigma} and {self.wide}")

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        grid, margin = at_least_2d(grid), math.ceil(3 * self.wide)
        # In float64: the last bits of a float32 product depend on the other rows, and could change an order.
        white = rng.normal((n_rows, *(size + 2 * margin for size in grid))).double()
        middle = white[(slice(None), *[slice(margin, -margin)] * len(grid))]
        narrow = _blur(white, self.sigma, margin)
        if self.color == "low":
            return narrow.flatten(1)
        if self.color == "high":
            return (middle - narrow).flatten(1)
        band = narrow - _blur(white, self.wide, margin)
        return (band if self.color == "band" else middle - band / self._peak()).flatten(1)

    def _peak(self) -> float:
        """The largest gain of the band: of e^-z - e^-qz with q = wide^2 / sigma^2, at z = ln q / (q - 1)."""
        q = (self.wide / self.sigma) ** 2
        return float(q ** (-1 / (q - 1)) - q ** (-q / (q - 1)))


def _blur(x: Tensor, sigma: float, margin: int) -> Tensor:
    """(B, h + 2 m, w + 2 m) -> (B, h, w): a Gaussian of 2 m + 1 taps along all axes, all of them inside x."""
    *outer, down, right = (_taps(size - 2 * margin, sigma, margin).to(x) for size in x.shape[1:])
    for axis, taps in enumerate(outer, 1):
        x = (x.movedim(axis, -1) @ taps.mT).movedim(-1, axis)
    return down @ x @ right.mT


def _taps(size: int, sigma: float, margin: int) -> Tensor:
    """(size, size + 2 m): each row the Gaussian around its place, of sum 1."""
    away = (torch.arange(size + 2 * margin) - torch.arange(size)[:, None] - margin).double()
    taps = torch.where(away.abs() <= margin, torch.exp(-0.5 * (away / sigma).square()), 0)
    return taps / taps.sum(1, keepdim=True)
