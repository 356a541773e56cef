"""Strategies that look at neither the data nor the network: random, block, grid, color."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.strategies.base import STRATEGIES, Guide, MaskStrategy, places


@STRATEGIES.register("random")
@dataclass(frozen=True)
class Random(MaskStrategy):
    """Every order is as likely as any other."""

    is_independent: ClassVar[bool] = True

    def scores(self, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        return rng.uniform((n_rows, grid[0] * grid[1]))


COVERS = 8
"""Blocks are drawn until their areas would cover the grid so many times; what they leave is one last block."""


@STRATEGIES.register("block")
@dataclass(frozen=True)
class Blocks(MaskStrategy):
    """One rectangle after another, of random area, shape and place (BEiT, arXiv 2106.08254, algorithm 1).

    The last one that a ratio takes is filled line by line. Rectangles lie inside the grid, as published, so its middle
    is masked more often than its corners. In a text, spans.

    Attributes:
        area: least and largest area of a rectangle, as shares of the grid; BEiT's are 16 and 75 of 196 tokens.
        aspect: least ratio of the sides, log-uniform up to its inverse.
    """

    area: tuple[float, float] = (0.08, 0.38)
    aspect: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two shares in (0, 1], the least first, got {self.area}")
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect must be in (0, 1], got {self.aspect}")

    def scores(self, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        n = math.ceil(2 * COVERS / sum(self.area))
        share, turn, down, right = rng.uniform((n_rows, n, 4)).unbind(2)  # (B, n)
        area = (self.area[0] + (self.area[1] - self.area[0]) * share) * (grid[0] * grid[1])
        ratio = self.aspect ** (2 * turn - 1)
        height = (area * ratio).sqrt().round().clamp(1, grid[0])
        width = (area / height).round().clamp(1, grid[1])
        top, left = ((down * (grid[0] - height + 1)).floor(), (right * (grid[1] - width + 1)).floor())
        y, x = places(grid)
        in_rows = (y[:, 0] >= top[..., None]) & (y[:, 0] < (top + height)[..., None])  # (B, n, h)
        in_columns = (x[0] >= left[..., None]) & (x[0] < (left + width)[..., None])  # (B, n, w)
        inside = in_rows[..., None] & in_columns[..., None, :]  # (B, n, h, w)
        number = torch.arange(n, dtype=torch.int32)[:, None, None]  # half the bytes of int64: it is the hot part
        return (torch.where(inside, number, n).amin(1) + _lines(n_rows, grid, rng)).flatten(1)


def _lines(n_rows: int, grid: tuple[int, int], rng: Rng) -> Tensor:
    """(B, h, w) in [0, 1): the way through a grid line by line, by rows or columns, from any of its corners."""
    (h, w), (y, x) = grid, places(grid)
    is_upward, is_leftward, is_by_column = (rng.uniform((n_rows, 3)) < 0.5)[..., None, None].unbind(1)  # (B, 1, 1)
    y, x = torch.where(is_upward, h - 1 - y, y), torch.where(is_leftward, w - 1 - x, x)
    return torch.where(is_by_column, x * h + y, y * w + x).double() / (h * w)


@STRATEGIES.register("grid")
@dataclass(frozen=True)
class Grid(MaskStrategy):
    """The same part of every cell of a grid, of random period and offset (GridMask, arXiv 2001.04086).

    A square grows from a corner of each cell, all at once; where the count ends inside a step, random cells take it.
    Period 2 at a ratio of 0.75 leaves one token of every 2 x 2.

    Attributes:
        period: least and largest side of a cell, in tokens; one is drawn a row.
    """

    period: tuple[int, int] = (2, 4)

    def __post_init__(self) -> None:
        if not 2 <= self.period[0] <= self.period[1]:
            raise ValueError(f"period must be two whole numbers from 2 on, the least first, got {self.period}")

    def scores(self, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        low, high = self.period
        size, down, right, turn = rng.uniform((n_rows, 4))[..., None, None].unbind(1)  # (B, 1, 1)
        period = low + (size * (high - low + 1)).long()
        y, x = (
            (place + (draw * period).long()) % period for place, draw in zip(places(grid), (down, right), strict=True)
        )
        square = torch.maximum(y, x)  # (B, h, w): the side, less 1, with which a square comes to hold the token
        step = square * period**2 + torch.where(turn < 0.5, y * period + x, x * period + y)
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

    def scores(self, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:  # noqa: ARG002
        margin = math.ceil(3 * self.wide)
        (h, w), middle = grid, slice(margin, -margin)
        # In float64: the last bits of a float32 product differ with the rows beside, and could turn an order around.
        white = rng.normal((n_rows, h + 2 * margin, w + 2 * margin)).double()
        narrow = _blur(white, self.sigma, margin)
        if self.color == "low":
            return narrow.flatten(1)
        if self.color == "high":
            return (white[:, middle, middle] - narrow).flatten(1)
        band = narrow - _blur(white, self.wide, margin)
        return (band if self.color == "band" else white[:, middle, middle] - band / self._peak()).flatten(1)

    def _peak(self) -> float:
        """The largest gain of the band: of e^-z - e^-qz with q = wide^2 / sigma^2, at z = ln q / (q - 1)."""
        q = (self.wide / self.sigma) ** 2
        return float(q ** (-1 / (q - 1)) - q ** (-q / (q - 1)))


def _blur(x: Tensor, sigma: float, margin: int) -> Tensor:
    """(B, h + 2 m, w + 2 m) -> (B, h, w): a Gaussian of 2 m + 1 taps along both axes, all of them inside x."""
    down, right = (_taps(size - 2 * margin, sigma, margin).to(x) for size in x.shape[1:])
    return down @ x @ right.mT


def _taps(size: int, sigma: float, margin: int) -> Tensor:
    """(size, size + 2 m): each row the Gaussian around its place, of sum 1."""
    away = (torch.arange(size + 2 * margin) - torch.arange(size)[:, None] - margin).double()
    taps = torch.where(away.abs() <= margin, torch.exp(-0.5 * (away / sigma).square()), 0)
    return taps / taps.sum(1, keepdim=True)
