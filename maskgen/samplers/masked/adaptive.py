"""Adaptive quotas: as many tokens at once as the prediction is sure of, at least one a step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.samplers.masked.order import Proposal
from maskgen.samplers.masked.unmasking import QUOTAS, Clock, Move, Quota


class Adaptive(Quota):
    """As many steps as it takes, at most one a token; time is the share of tokens that is still masked.

    The count asks how sure the prediction is; which tokens are then revealed is the order's business. The published
    samplers have an order of the same measure.
    """

    needs_prediction: ClassVar[bool] = True

    def n_steps(self, steps: int, length: int) -> int:  # noqa: ARG002
        return length

    def time(self, clock: Clock) -> Tensor:
        return self._time(clock, clock.n_left)

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) float64, the time after the one token that is sure to be revealed."""
        return self._time(clock, clock.n_left - 1)

    def _time(self, clock: Clock, n_left: Tensor) -> Tensor:
        ratio = n_left.clamp(min=0).double() / clock.n_start.clamp(min=1)
        return self.schedule.inverse(1 - ratio)

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        assert move.proposal is not None
        return self.sure(move.proposal).sum(1).cpu().clamp(min=1)

    @abstractmethod
    def sure(self, proposal: Proposal) -> Tensor:
        """(B, L) bool, sorted in some way of its own: as many True as tokens could be revealed at once."""


def _confidence(proposal: Proposal) -> Tensor:
    """(B, L) float64, probability of the token drawn, highest first; 0 where there is no candidate."""
    assert proposal.prediction is not None
    assert proposal.tokens is not None
    return proposal.spread(proposal.prediction.log_prob(proposal.tokens)).exp().sort(1, descending=True).values


@QUOTAS.register("threshold")
@dataclass(frozen=True)
class Threshold(Adaptive):
    """All tokens of probability at least tau (Fast-dLLM, arXiv 2505.22618)."""

    tau: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1], got {self.tau}")

    def sure(self, proposal: Proposal) -> Tensor:
        return _confidence(proposal) >= self.tau


@QUOTAS.register("factor")
@dataclass(frozen=True)
class Factor(Adaptive):
    """The most n with (n + 1) (1 - c_n) <= f, c_n being the n-th highest probability (Fast-dLLM, arXiv 2505.22618)."""

    f: float = 1.0

    def __post_init__(self) -> None:
        if not self.f > 0:
            raise ValueError(f"f must be positive, got {self.f}")

    def sure(self, proposal: Proposal) -> Tensor:
        c = _confidence(proposal)
        n = torch.arange(1, c.shape[1] + 1, dtype=c.dtype, device=c.device)
        return (c > 0) & ((n + 1) * (1 - c) <= self.f + 1e-9)  # the nudge: 5 (1 - 0.6) is 2


@QUOTAS.register("entropy_bound")
@dataclass(frozen=True)
class EntropyBound(Adaptive):
    """The longest run of tokens, lowest entropy first, whose entropies but the last sum to at most gamma nats.

    The sum bounds what is lost by drawing them independently (EB-Sampler, arXiv 2505.24857).
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}")

    def sure(self, proposal: Proposal) -> Tensor:
        assert proposal.prediction is not None
        entropy = (-proposal.spread(-proposal.prediction.entropy())).sort(1).values  # inf where no candidate is
        before = entropy.cumsum(1).roll(1, 1)
        before[:, 0] = 0
        return entropy.isfinite() & (before <= self.gamma)
