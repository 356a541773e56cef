"""Strategies guided by scores of the network: attention, hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.strategies.base import (
    STRATEGIES,
    Guide,
    GuideMethod,
    MaskStrategy,
    check_share,
    first,
    ranks,
    spread_evenly,
)


@STRATEGIES.register("attention")
@dataclass(frozen=True)
class Attention(MaskStrategy):
    """The tokens the network attends to most are masked first (AttMask, arXiv 2203.12719).

    Attributes:
        hints: share of the tokens that are masked last, drawn from the most attended ones: what is left of the object
            (AttMask-Hint). 0 is AttMask-High.
        among: share of the tokens that counts as most attended.
    """

    requires: ClassVar[GuideMethod | None] = "attention_scores"

    hints: float = 0.05
    among: float = 0.1

    def __post_init__(self) -> None:
        check_share("hints", self.hints)
        check_share("among", self.among)
        if self.hints > self.among:
            raise ValueError(f"hints must be at most among ({self.among}), from which they are drawn, got {self.hints}")

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:
        attended, length = scores_of(guide), math.prod(grid)
        n_top, n_hints = round(self.among * length), round(self.hints * length)
        order = ranks(-attended)
        chance = rng.uniform((n_rows, length)).to(attended.device)
        is_hint = first(torch.where(order < n_top, chance, 1.0), n_hints)
        return (order + length * is_hint).double()


@STRATEGIES.register("hard")
@dataclass(frozen=True)
class Hard(MaskStrategy):
    """The tokens with the highest predicted loss, and random others (HPM, arXiv 2304.05919).

    Of n masked tokens share * n are the hardest and the rest random, on average over the random ones; the share grows
    linearly over the run, from easy to hard.

    Attributes:
        start, end: the share in the beginning and in the end.
    """

    requires: ClassVar[GuideMethod | None] = "difficulty"

    start: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        check_share("start", self.start)
        check_share("end", self.end)

    def share(self, progress: float) -> float:
        """Share of the masked tokens that are the hardest."""
        return self.start + (self.end - self.start) * progress

    def scores(self, n_rows: int, grid: tuple[int, ...], rng: Rng, guide: Guide | None = None) -> Tensor:
        difficulty, length = scores_of(guide), math.prod(grid)
        share = self.share(guide.progress if guide is not None else 0.0)
        # With n masked, share n are the hardest, and each other is there with chance u = (n - share n) / (L - share n).
        # So a token enters at n = hardness / share, or at the n that belongs to its u, whichever is first.
        hardness = ranks(-difficulty).double()
        chance = spread_evenly(rng.uniform((n_rows, length)), rng).to(difficulty.device)
        by_chance = chance * length / (1 - share + share * chance)
        return torch.minimum(hardness / share, by_chance) if share else by_chance


def scores_of(guide: Guide | None) -> Tensor:
    """(B, L), the scores of the network.

    Raises:
        ValueError: no guide.
    """
    if guide is None:
        raise ValueError("this mask strategy requires scores of the network; pass them as guide")
    return guide.scores
