"""What a mask strategy is: an order of tokens, from which any mask ratio takes its first ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.core.rng import Rng


@dataclass(frozen=True)
class Guide:
    """What a strategy that asks the network is told.

    Attributes:
        scores: (B, L), the network's answer about each token of x_0.
        progress: share of the run's steps that are done, in [0, 1].
    """

    scores: Tensor
    progress: float = 0.0


class MaskStrategy(ABC):
    """An order in which the tokens of a row are masked. Frozen dataclasses: their fields are their config.

    Count and order are two axes: a strategy gives scores, the process says how many of the lowest are masked. So every
    schedule, ratio and network goes with every strategy, and counts are exact.

    Attributes:
        asks: the method of the network whose answer (B, L) is the guide; None for one that looks at nothing.
        is_independent: the scores are independent uniforms, as bounds on the likelihood need them.
    """

    asks: ClassVar[str | None] = None
    is_independent: ClassVar[bool] = False

    @abstractmethod
    def scores(self, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) on the CPU, or where the guide is: the lowest is masked first. Row i is of its own randomness alone.

        Args:
            n_rows: B.
            grid: (h, w), L = h w; text is one row, (1, L).
            guide: for a strategy that asks.
        """

    def mask(self, ratio: float, n_rows: int, grid: tuple[int, int], rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) bool, True where masked: exactly clamp(round(L ratio), 1, L) tokens of every row."""
        length = grid[0] * grid[1]
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

    The number below a ratio is then L ratio, rounded up or down at random so that its mean is exact: how many a coin a
    token would mask on average, without the coins' independence.
    """
    return (ranks(scores) + rng.uniform(scores.shape, device=scores.device)) / scores.shape[1]


def check_share(name: str, value: float) -> None:
    """Raises:
    ValueError: outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def places(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (h, 1) and columns (1, w) of a grid."""
    return torch.arange(grid[0])[:, None], torch.arange(grid[1])[None]
