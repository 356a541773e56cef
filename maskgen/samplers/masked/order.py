"""Order: which masked tokens are revealed first. A higher score goes first; ties fall to the lower position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.registry import Registry
from maskgen.core.rng import Rng


@dataclass(frozen=True)
class Proposal:
    """What one step can choose from.

    Attributes:
        where: (B, L) bool, the M candidates.
        progress: share of the way done after this step, in (0, 1].
        grid: shape of the token grid, (L,) or (h, w).
        prediction: distributions of the candidates, packed; None for an order that does not need them.
        tokens: (M,) the token drawn for each.
    """

    where: Tensor
    progress: float
    grid: tuple[int, ...]
    prediction: Categorical | None = None
    tokens: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """(M,) values of the candidates -> (B, L) float64, -inf elsewhere."""
        whole = torch.full(self.where.shape, -torch.inf, dtype=torch.float64, device=self.where.device)
        whole[self.where] = values.double()
        return whole


class Order(ABC):
    """Scores candidates. Without `needs_prediction` the network is asked only about the tokens that are revealed."""

    needs_prediction: ClassVar[bool] = False

    @abstractmethod
    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        """(B, L) float64, -inf where there is no candidate."""


ORDERS: Registry[Order] = Registry("order", Order, home="maskgen.samplers.masked:ORDERS")


@ORDERS.register("random")
@dataclass(frozen=True)
class Random(Order):
    """Uniformly random, as the reverse process has it (MD4, MDLM)."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        uniform = rng.uniform(proposal.where.shape, device=proposal.where.device)
        return uniform.masked_fill(~proposal.where, -torch.inf)


@dataclass(frozen=True)
class _ByCertainty(Order):
    """A measure of certainty plus Gumbel noise: + choice_temperature * Gumbel, times (1 - progress) if it is fading.

    Constant noise is a draw without replacement from softmax(certainty / choice_temperature) (Dream's `alg_temp`).
    """

    needs_prediction: ClassVar[bool] = True

    choice_temperature: float = 0.0
    is_fading: bool = True

    def __post_init__(self) -> None:
        if not self.choice_temperature >= 0:
            raise ValueError(f"choice_temperature must be at least 0, got {self.choice_temperature}")

    @abstractmethod
    def certainty(self, prediction: Categorical, tokens: Tensor) -> Tensor:
        """(M,) higher is more certain."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        assert proposal.prediction is not None
        assert proposal.tokens is not None
        score = proposal.spread(self.certainty(proposal.prediction, proposal.tokens))
        if self.choice_temperature:
            share = 1 - proposal.progress if self.is_fading else 1
            score += self.choice_temperature * share * rng.gumbel(score.shape, device=score.device)
        return score


@ORDERS.register("confidence")
@dataclass(frozen=True)
class Confidence(_ByCertainty):
    """Log-probability of the drawn token (MaskGIT, section 3.2; MAGE), or its probability (Dream).

    Which of the two matters only where there is choice noise.
    """

    is_log: bool = True

    def certainty(self, prediction: Categorical, tokens: Tensor) -> Tensor:
        log_prob = prediction.log_prob(tokens)
        return log_prob if self.is_log else log_prob.exp()


@ORDERS.register("margin")
@dataclass(frozen=True)
class Margin(_ByCertainty):
    """First minus second probability (arXiv 2502.06768)."""

    def certainty(self, prediction: Categorical, tokens: Tensor) -> Tensor:  # noqa: ARG002
        return prediction.margin()


@ORDERS.register("entropy")
@dataclass(frozen=True)
class Entropy(_ByCertainty):
    """Lowest entropy of the whole distribution first."""

    def certainty(self, prediction: Categorical, tokens: Tensor) -> Tensor:  # noqa: ARG002
        return -prediction.entropy()


@ORDERS.register("halton")
@dataclass(frozen=True)
class Halton(Order):
    """A low-discrepancy sequence over the grid: tokens revealed together lie far apart (arXiv 2503.17076).

    With `is_rolled` each sample's sequence starts at a place of its own.
    """

    is_rolled: bool = False

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        n_rows, length = proposal.where.shape
        place = torch.empty(length, dtype=torch.float64)
        place[torch.tensor(halton_order(proposal.grid))] = torch.arange(length, dtype=torch.float64)
        place = place.expand(n_rows, -1)
        if self.is_rolled:
            # A fork is a pure function of the seed: every step of a sample sees the same start.
            start = (rng.fork("halton").uniform((n_rows, 1)) * length).long()
            place = (place - start) % length
        return (-place).to(proposal.where.device).masked_fill(~proposal.where, -torch.inf)


@lru_cache(maxsize=32)
def halton_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat positions of a grid (h, w) or (L,) in Halton order, bases 2 and 3, each position once.

    The sequence grows until every position is covered: 10,000 points, which public code uses, miss six of 64 x 64.
    """
    if len(grid) > 2:
        raise ValueError(f"the halton order knows grids of one or two axes, got {grid}; use another order")
    seen: dict[int, None] = {}
    length = 1
    for size in grid:
        length *= size
    index = 0
    while len(seen) < length:
        index += 1
        flat = 0
        for size, base in zip(grid, (2, 3), strict=False):
            flat = flat * size + int(size * _radical_inverse(index, base))
        seen.setdefault(flat)
    return tuple(seen)


def _radical_inverse(index: int, base: int) -> float:
    """The digits of `index` mirrored at the point: van der Corput's sequence."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator = numerator * base + digit
        denominator *= base
    return numerator / denominator
