"""Quota: how many tokens a step reveals in each row, and what time it is then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.core.rng import Rng
from maskgen.samplers.masked.order import Proposal
from maskgen.schedules import Cosine, Fixed, Linear, Rounding, Schedule


@dataclass(frozen=True)
class Clock:
    """Where a decoding stands, on the CPU: nothing here waits for a GPU.

    Attributes:
        step, n_steps: this step's index and the number of steps.
        t: (B,) float64, the time before this step.
        n_start: (B,) int64, tokens masked at the beginning.
        n_left: (B,) int64, tokens masked before this step.
        length: L, tokens in a row.
    """

    step: int
    n_steps: int
    t: Tensor
    n_start: Tensor
    n_left: Tensor
    length: int

    @property
    def is_last(self) -> bool:
        return self.step == self.n_steps - 1


@dataclass(frozen=True)
class Move:
    """One step t -> s, on the CPU but for the proposal.

    Attributes:
        clock: the state before it.
        s: (B,) float64, the time after it.
        sigma: (B,) float64, the chance that a revealed token is masked again, which the quota makes up for.
        n_remasked: (B,) int64, how many are.
        proposal: all masked tokens with their predictions, for quotas that need them.
    """

    clock: Clock
    s: Tensor
    sigma: Tensor
    n_remasked: Tensor
    proposal: Proposal | None = None


class Quota(ABC):
    """Says how many and when. The loop itself reveals all that is left in the last step.

    With `needs_prediction` the count depends on what the network says, so it is asked about all masked tokens.
    """

    needs_prediction: ClassVar[bool] = False
    schedule: Schedule = Linear()
    """Where remasking reads alpha; quotas with a schedule of their own replace it."""

    def n_steps(self, steps: int, length: int) -> int:  # noqa: ARG002
        """Steps needed at most for `length` masked tokens when `steps` were asked for."""
        return steps

    def time(self, clock: Clock) -> Tensor:
        """(B,) float64, the time before a step: the one after the last step unless a quota knows better."""
        return clock.t

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) float64, the time s after the step: evenly spaced unless a quota knows better."""
        return torch.full_like(clock.t, 1 - (clock.step + 1) / clock.n_steps)

    def asked_at(self, move: Move) -> Tensor:
        """(B,) float64, the time the network is told: the one before the step unless a quota knows better."""
        return move.clock.t

    @abstractmethod
    def count(self, move: Move, rng: Rng) -> Tensor:
        """(B,) int64 tokens to reveal, on the CPU; the loop cuts it to what is left."""


QUOTAS: Registry[Quota] = Registry("quota", Quota, home="maskgen.samplers.masked:QUOTAS")


@lru_cache(maxsize=32)
def _masked_counts(schedule: Schedule, n_start: tuple[int, ...], n_steps: int, rounding: Rounding) -> Tensor:
    """`Schedule.masked_counts`, made once for all steps of a decoding."""
    return schedule.masked_counts(torch.tensor(n_start), n_steps, rounding)


@QUOTAS.register("schedule")
@dataclass(frozen=True)
class Scheduled(Quota):
    """Fixed counts from a schedule at evenly spaced times (MaskGIT, section 3.2)."""

    schedule: Schedule = field(default_factory=Cosine)
    rounding: Rounding = "masked"

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        clock = move.clock
        after = _masked_counts(self.schedule, tuple(clock.n_start.tolist()), clock.n_steps, self.rounding)
        return clock.n_left + move.n_remasked - after[clock.step]


@QUOTAS.register("even")
@dataclass(frozen=True)
class Even(Quota):
    """The same count in every step, the first ones taking what the division leaves (LLaDA, arXiv 2502.09992)."""

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        n, steps = move.clock.n_start, move.clock.n_steps
        return n // steps + (move.clock.step < n % steps) + move.n_remasked


@QUOTAS.register("share")
@dataclass(frozen=True)
class Share(Quota):
    """Of the tokens still masked the share that becomes visible, 1 - mask_ratio(s) / mask_ratio(t), rounded.

    Times go evenly from 1 to `end`. Dream rounds down and ends at 1e-3; dllm rounds to the nearest, ties down, and
    ends at 0.
    """

    schedule: Schedule = field(default_factory=Linear)
    rounding: Literal["floor", "round"] = "floor"
    end: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.end < 1:
            raise ValueError(f"end must be in [0, 1), got {self.end}")

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        return torch.full_like(clock.t, 1 - (1 - self.end) * (clock.step + 1) / clock.n_steps)

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        clock = move.clock
        n = clock.n_left * (1 - self.schedule.mask_ratio(move.s) / self.schedule.mask_ratio(clock.t))
        # The nudges make whole numbers and ties independent of the last bit.
        n = torch.floor(n + 1e-9) if self.rounding == "floor" else torch.ceil(n - 0.5 - 1e-9)
        return n.long() + move.n_remasked


@QUOTAS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Quota):
    """Each masked token by itself, with chance (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    Ancestral sampling (MD4, eq. 8) where sigma = 0, ReMDM's eq. 5 elsewhere. A count with random order is the same
    law as independent coins. The random order needs no prediction, so the network runs only on rows in which a coin
    fell: T (1 - (1 - 1/T)^L) times a row on average with a linear schedule. This is cached ancestral sampling
    (MDLM's `ddpm_cache`, arXiv 2406.07524), row by row, and exact for networks that look at the time as well.

    Args:
        schedule: alpha.
        end: times go evenly from 1 to it (eMIGM: 1e-5).
        asks_after: the network, and guidance, are told the time after the step, not the one before it (eMIGM, arXiv
            2503.07197: its guidance interval is of s).
    """

    schedule: Schedule = field(default_factory=Linear)
    end: float = 0.0
    asks_after: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.end < 1:
            raise ValueError(f"end must be in [0, 1), got {self.end}")

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        return torch.full_like(clock.t, 1 - (1 - self.end) * (clock.step + 1) / clock.n_steps)

    def asked_at(self, move: Move) -> Tensor:
        return move.s if self.asks_after else move.clock.t

    def count(self, move: Move, rng: Rng) -> Tensor:
        alpha_t, alpha_s = self.schedule.alpha(move.clock.t), self.schedule.alpha(move.s)
        return _coins((alpha_s - (1 - move.sigma) * alpha_t) / (1 - alpha_t), move.clock, rng)


@QUOTAS.register("euler")
@dataclass(frozen=True)
class Euler(Quota):
    """Each masked token by itself, with chance 1 - exp(-(t - s) elbo_weight(t)): discrete flow matching.

    The jump rate is held for a step (arXiv 2407.15595), so fewer are revealed than `Bernoulli`, which
    is exact, reveals, and the last step has to make up for it.
    """

    schedule: Schedule = field(default_factory=Linear)

    def count(self, move: Move, rng: Rng) -> Tensor:
        rate = self.schedule.elbo_weight(move.clock.t)
        return _coins(-torch.expm1(-(move.clock.t - move.s) * rate), move.clock, rng) + move.n_remasked


@QUOTAS.register("one")
@dataclass(frozen=True)
class One(Quota):
    """One token a step at the time it is hit: first-hitting sampling (arXiv 2409.02908, section 4).

    With n tokens masked at time t the next one appears where mask_ratio(s) = mask_ratio(t) u^(1/n). The network runs
    on a row as often as that row has holes.
    """

    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Fixed):
            raise ValueError("the times of hits need a schedule that moves, fixed does not; take linear, say")

    def n_steps(self, steps: int, length: int) -> int:  # noqa: ARG002
        return length

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:
        uniform = 1 - rng.uniform((len(clock.t), 1))[:, 0]
        ratio = self.schedule.mask_ratio(clock.t) * uniform ** (1 / clock.n_left.clamp(min=1))
        return self.schedule.inverse(1 - ratio).clamp(0, 1)

    def asked_at(self, move: Move) -> Tensor:
        """The time of the hit itself."""
        return move.s

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        return move.clock.n_left.clamp(max=1)


def _coins(chance: Tensor, clock: Clock, rng: Rng) -> Tensor:
    """(B,) int64, successes among n_left tokens of chance (B,).

    L coins for every row, so that a row's stream does not depend on the other rows.
    """
    is_success = rng.uniform((len(chance), clock.length)) < chance[:, None]
    is_token = torch.arange(clock.length) < clock.n_left[:, None]
    return (is_success & is_token).sum(1)
