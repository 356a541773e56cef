"""Base class of mask strategies: an order of tokens, of which a mask ratio takes the first ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.core.rng import Rng

GuideMethod = Literal["attention_scores", "difficulty"]
"""Method of a network that computes the scores of a guide."""


@dataclass(frozen=True)
class Guide:
    """Scores of a network, for strategies that use one.

    Attributes:
        scores: (B, L), the network's score of each token of x_0.
        progress: share of the training steps that are done, in [0, 1].
    """

    scores: Tensor
    progress: float = 0.0


class MaskStrategy(ABC):
    """An order in which the tokens of a row are masked. Frozen dataclasses: their fields are their config.

    Count and order are two axes: a strategy gives scores, the process decides how many of the lowest are masked. So
    every schedule, ratio and network goes with every strategy, and counts are exact.

    Attributes:
        requires: method of the network that computes the guide; None for strategies that use no network.
        is_independent: the scores are independent uniforms, as bounds on the likelihood need them.
    """

    requires: ClassVar[GuideMethod | None] = None
    is_independent: ClassVar[bool] = False

    @abstractmethod
    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) on the CPU, or on the guide's device: the lowest is masked first. Rows are independent.

        Args:
            n_rows: B.
            grid: n-dimensional shape of the tokens, L is its product: (L,) of a text, (h, w) of an image, (T, h, w)
                of a video.
            rng: source of randomness.
            guide: scores of the network, for a strategy that requires them.
        """

    def mask(self, ratio: float, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) bool, True where masked: exactly clamp(round(L ratio), 1, L) tokens of every row."""
        length = math.prod(grid)
        return first(self.scores(n_rows, grid, rng, guide), min(max(round(length * ratio), 1), length))


STRATEGIES: Registry[MaskStrategy] = Registry("mask strategy", MaskStrategy, home="maskgen.strategies:STRATEGIES")


def first(scores: Tensor, n: int | Tensor) -> Tensor:
    """(B, L) bool: the n lowest scores (B, L) of each row; n is one number or (B, 1). Exact where scores are tied."""
    return ranks(scores) < n


def ranks(scores: Tensor) -> Tensor:
    """(B, L) int64: the place of each score in its row, 0 for the lowest; of equal ones the left comes first."""
    return scores.argsort(dim=1, stable=True).argsort(1)


def spread_evenly(scores: Tensor, rng: Rng) -> Tensor:
    """(B, L) float64 in [0, 1) in the order of the scores, one in each interval [k / L, (k + 1) / L).

    The number of values below a ratio is then L ratio, rounded up or down at random with the exact mean: as many as
    independent draws would mask on average, with less variance.
    """
    return (ranks(scores) + rng.uniform(scores.shape, device=scores.device)) / scores.shape[1]


def check_share(name: str, value: float) -> None:
    """Check that a value is a share.

    Raises:
        ValueError: outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def at_least_2d(grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid itself; (1, L) of a line (L,), which is a grid of one row."""
    return grid if len(grid) > 1 else (1, *grid)


def coordinates(grid: tuple[int, ...]) -> list[Tensor]:
    """The coordinate along each of the d axes, shaped to broadcast over the grid: (h, 1) and (1, w) of (h, w)."""
    shapes = [[-1 if axis == own else 1 for own in range(len(grid))] for axis in range(len(grid))]
    return [torch.arange(size).view(shape) for size, shape in zip(grid, shapes, strict=True)]


def line_by_line(places: Sequence[Tensor], sizes: Sequence[int | Tensor]) -> Tensor:
    """Number of a place when a box of these sizes is read line by line, the last axis fastest; `places` broadcast."""
    number = places[0]
    for place, size in zip(places[1:], sizes[1:], strict=True):
        number = number * size + place
    return number
