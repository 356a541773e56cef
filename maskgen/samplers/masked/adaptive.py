"""Adaptive unmasking: as many tokens as the prediction is confident of, at least one per step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.samplers.masked.order import Proposal
from maskgen.samplers.masked.unmasking import UNMASKINGS, Clock, Move, Unmasking


class Adaptive(Unmasking):
    """As many steps as needed, at most one per token; the time is the share of tokens still masked.

    Only the count depends on the confidence; the order chooses the tokens. Published samplers use an order by the same
    measure.
    """

    needs_prediction: ClassVar[bool] = True
    uses_steps: ClassVar[bool] = False

    def time(self, clock: Clock) -> Tensor:
        return self._time(clock, clock.n_left)

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) float64, the time after one revealed token, the minimum."""
        return self._time(clock, clock.n_left - 1)

    def _time(self, clock: Clock, n_left: Tensor) -> Tensor:
        ratio = n_left.clamp(min=0).double() / clock.n_start.clamp(min=1)
        return self.schedule.inverse(1 - ratio)

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        assert move.proposal is not None
        return self.confident(move.proposal).sum(1).cpu().clamp(min=1)

    @abstractmethod
    def confident(self, proposal: Proposal) -> Tensor:
        """(B, L) bool, in any order: True as often as tokens can be revealed at once."""


def _confidence(proposal: Proposal) -> Tensor:
    """(B, L) float64, probability of the drawn tokens in descending order; 0 in place of missing candidates."""
    assert proposal.prediction is not None
    assert proposal.tokens is not None
    return proposal.spread(proposal.prediction.log_prob(proposal.tokens)).exp().sort(1, descending=True).values


@UNMASKINGS.register("threshold")
@dataclass(frozen=True)
class Threshold(Adaptive):
    """All tokens of probability at least tau (Fast-dLLM, arXiv 2505.22618)."""

    needs_tokens: ClassVar[bool] = True

    tau: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1], got {self.tau}")

    def confident(self, proposal: Proposal) -> Tensor:
        return _confidence(proposal) >= self.tau


@UNMASKINGS.register("factor")
@dataclass(frozen=True)
class Factor(Adaptive):
    """The largest n with (n + 1) (1 - c_n) <= f, c_n the n-th highest probability (Fast-dLLM, arXiv 2505.22618)."""

    needs_tokens: ClassVar[bool] = True

    f: float = 1.0

    def __post_init__(self) -> None:
        if not self.f > 0:
            raise ValueError(f"f must be positive, got {self.f}")

    def confident(self, proposal: Proposal) -> Tensor:
        c = _confidence(proposal)
        n = torch.arange(1, c.shape[1] + 1, dtype=c.dtype, device=c.device)
        return (c > 0) & ((n + 1) * (1 - c) <= self.f + 1e-9)  # the nudge: 5 (1 - 0.6) is 2


@UNMASKINGS.register("entropy_bound")
@dataclass(frozen=True)
class EntropyBound(Adaptive):
    """The longest run of tokens, lowest entropy first, whose entropies but the last sum to at most gamma nats.

    The sum bounds the error of drawing them independently (EB-Sampler, arXiv 2505.24857).
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}")

    def confident(self, proposal: Proposal) -> Tensor:
        assert proposal.prediction is not None
        entropy = (-proposal.spread(-proposal.prediction.entropy())).sort(1).values  # inf where no candidate is
        before = entropy.cumsum(1).roll(1, 1)
        before[:, 0] = 0
        return entropy.isfinite() & (before <= self.gamma)
