"""Quota: how many tokens a step reveals in each row, and what time it is then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from maskgen.registry import Registry
from maskgen.rng import Rng
from maskgen.schedules import Cosine, Linear, Rounding, Schedule


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


class Quota(ABC):
    """Says how many and when. The loop itself reveals all that is left in the last step."""

    schedule: Schedule

    def n_steps(self, steps: int, length: int) -> int:  # noqa: ARG002
        """Steps needed for `length` masked tokens when `steps` were asked for."""
        return steps

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) float64, the time s after the step: evenly spaced unless a quota knows better."""
        return torch.full_like(clock.t, 1 - (clock.step + 1) / clock.n_steps)

    @abstractmethod
    def count(self, clock: Clock, s: Tensor, sigma: Tensor, n_remasked: Tensor, rng: Rng) -> Tensor:
        """(B,) int64 tokens to reveal.

        Args:
            clock: the state before the step.
            s: (B,) the time after it.
            sigma: (B,) the chance that a revealed token is masked again in this step.
            n_remasked: (B,) how many are.
            rng: for quotas that draw.
        """


QUOTAS: Registry[Quota] = Registry("quota", Quota)


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

    def count(self, clock: Clock, s: Tensor, sigma: Tensor, n_remasked: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        after = _masked_counts(self.schedule, tuple(clock.n_start.tolist()), clock.n_steps, self.rounding)
        return clock.n_left + n_remasked - after[clock.step]


@QUOTAS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Quota):
    """Each masked token by itself, with chance (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    Ancestral sampling (MD4, eq. 8) where sigma = 0, ReMDM's eq. 5 elsewhere. A count with random order is the same
    law as independent coins.
    """

    schedule: Schedule = field(default_factory=Linear)

    def count(self, clock: Clock, s: Tensor, sigma: Tensor, n_remasked: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        alpha_t, alpha_s = self.schedule.alpha(clock.t), self.schedule.alpha(s)
        chance = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        # L coins for every row, so that a row's stream does not depend on the other rows.
        is_success = rng.uniform((len(s), clock.length)) < chance[:, None]
        is_token = torch.arange(clock.length) < clock.n_left[:, None]
        return (is_success & is_token).sum(1)


@QUOTAS.register("one")
@dataclass(frozen=True)
class One(Quota):
    """One token a step at the time it is hit: first-hitting sampling (arXiv 2409.02908, section 4).

    With n tokens masked at time t the next one appears where mask_ratio(s) = mask_ratio(t) u^(1/n).
    """

    schedule: Schedule = field(default_factory=Linear)

    def n_steps(self, steps: int, length: int) -> int:  # noqa: ARG002
        return length

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:
        uniform = 1 - rng.uniform((len(clock.t), 1))[:, 0]
        ratio = self.schedule.mask_ratio(clock.t) * uniform ** (1 / clock.n_left.clamp(min=1))
        return self.schedule.inverse(1 - ratio).clamp(0, 1)

    def count(self, clock: Clock, s: Tensor, sigma: Tensor, n_remasked: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        return clock.n_left.clamp(max=1)
