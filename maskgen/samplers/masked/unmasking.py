"""Unmasking schedules: how many tokens a step reveals in each row, and the time after it."""

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
    """State of a decoding, on the CPU, so that no step waits for a GPU.

    Attributes:
        step, n_steps: index of this step and the number of steps.
        t: (B,) float64, time before this step.
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
    """One step t -> s; all but the proposal is on the CPU.

    Attributes:
        clock: the state before the step.
        s: (B,) float64, time after the step.
        sigma: (B,) float64, chance that a revealed token is masked again, which the count compensates.
        n_remasked: (B,) int64, how many tokens are masked again.
        proposal: all masked tokens with their predictions, for schedules with `needs_prediction`.
    """

    clock: Clock
    s: Tensor
    sigma: Tensor
    n_remasked: Tensor
    proposal: Proposal | None = None


class Unmasking(ABC):
    """Number of tokens to reveal and times of the steps. The loop reveals all that is left in the last step.

    With `needs_prediction` the count depends on the prediction of all masked tokens, which is then computed first;
    with `needs_tokens` on the tokens drawn from it too. `uses_steps` is False if the number of steps follows from the
    number of tokens, `max_one_a_token` True if more steps than tokens would reveal nothing in some.
    """

    needs_prediction: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_steps: ClassVar[bool] = True
    max_one_a_token: ClassVar[bool] = False
    schedule: Schedule = Linear()
    """alpha(t) of the times; schedules with a setting of their own replace it."""

    def n_steps(self, steps: int, length: int) -> int:
        """Largest number of steps for `length` masked tokens, given the setting `steps`."""
        if not self.uses_steps:
            return length
        return min(steps, length) if self.max_one_a_token else steps

    def time(self, clock: Clock) -> Tensor:
        """(B,) float64, time before a step; by default the time after the step before."""
        return clock.t

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) float64, time s after the step; by default evenly spaced."""
        return torch.full_like(clock.t, 1 - (clock.step + 1) / clock.n_steps)

    def query_time(self, move: Move) -> Tensor:
        """(B,) float64, time that the network and guidance are given; by default the one before the step."""
        return move.clock.t

    @abstractmethod
    def count(self, move: Move, rng: Rng) -> Tensor:
        """(B,) int64, tokens to reveal, on the CPU; the loop limits it to those left."""


UNMASKINGS: Registry[Unmasking] = Registry("unmasking", Unmasking, home="maskgen.samplers.masked:UNMASKINGS")


def require_moving(schedule: Schedule) -> None:
    """Refuse a constant schedule: all tokens would be revealed in the last step.

    Raises:
        ValueError: the schedule is `fixed`.
    """
    if isinstance(schedule, Fixed):
        raise ValueError(
            "schedule fixed has the same alpha at all times, so all tokens would be revealed in the last step; use "
            "linear or cosine"
        )


@lru_cache(maxsize=32)
def _masked_counts(schedule: Schedule, n_start: tuple[int, ...], n_steps: int, rounding: Rounding) -> Tensor:
    """`Schedule.masked_counts`, computed once for all steps of a decoding."""
    return schedule.masked_counts(torch.tensor(n_start), n_steps, rounding)


@UNMASKINGS.register("schedule")
@dataclass(frozen=True)
class Scheduled(Unmasking):
    """Fixed counts from a schedule at evenly spaced times (MaskGIT, section 3.2)."""

    max_one_a_token: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Cosine)
    rounding: Rounding = "masked"

    def __post_init__(self) -> None:
        require_moving(self.schedule)

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        clock = move.clock
        after = _masked_counts(self.schedule, tuple(clock.n_start.tolist()), clock.n_steps, self.rounding)
        return clock.n_left + move.n_remasked - after[clock.step]


@UNMASKINGS.register("even")
@dataclass(frozen=True)
class Even(Unmasking):
    """The same count in every step, the remainder in the first ones (LLaDA, arXiv 2502.09992)."""

    max_one_a_token: ClassVar[bool] = True

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        n, steps = move.clock.n_start, move.clock.n_steps
        return n // steps + (move.clock.step < n % steps) + move.n_remasked


@UNMASKINGS.register("share")
@dataclass(frozen=True)
class Share(Unmasking):
    """A share of the tokens still masked, 1 - mask_ratio(s) / mask_ratio(t), rounded.

    Times go evenly from 1 to `end`. Dream rounds down and ends at 1e-3; dllm rounds to the nearest, ties down, and
    ends at 0.
    """

    schedule: Schedule = field(default_factory=Linear)
    rounding: Literal["floor", "round"] = "floor"
    end: float = 1e-3

    def __post_init__(self) -> None:
        require_moving(self.schedule)
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


@UNMASKINGS.register("bernoulli", renamed={"asks_after": "uses_time_after"})
@dataclass(frozen=True)
class Bernoulli(Unmasking):
    """Each masked token independently, with chance (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    Ancestral sampling (MD4, eq. 8) for sigma = 0, else ReMDM's eq. 5. A count with random order has the law of
    independent coins. The random order needs no prediction, so the network runs only on rows that reveal a token:
    T (1 - (1 - 1/T)^L) evaluations per row on average with a linear schedule. This is cached ancestral sampling
    (MDLM's `ddpm_cache`, arXiv 2406.07524), row by row, and exact for time-conditioned networks as well.

    Args:
        schedule: alpha(t).
        end: times go evenly from 1 to it (eMIGM: 1e-5).
        uses_time_after: network and guidance are given the time after the step instead of the one before it (eMIGM,
            arXiv 2503.07197: its guidance interval is of s).
    """

    schedule: Schedule = field(default_factory=Linear)
    end: float = 0.0
    uses_time_after: bool = False

    def __post_init__(self) -> None:
        require_moving(self.schedule)
        if not 0 <= self.end < 1:
            raise ValueError(f"end must be in [0, 1), got {self.end}")

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:  # noqa: ARG002
        return torch.full_like(clock.t, 1 - (1 - self.end) * (clock.step + 1) / clock.n_steps)

    def query_time(self, move: Move) -> Tensor:
        return move.s if self.uses_time_after else move.clock.t

    def count(self, move: Move, rng: Rng) -> Tensor:
        alpha_t, alpha_s = self.schedule.alpha(move.clock.t), self.schedule.alpha(move.s)
        return _coins((alpha_s - (1 - move.sigma) * alpha_t) / (1 - alpha_t), move.clock, rng)


@UNMASKINGS.register("euler")
@dataclass(frozen=True)
class Euler(Unmasking):
    """Each masked token independently, with chance 1 - exp(-(t - s) elbo_weight(t)): discrete flow matching.

    The jump rate is constant within a step (arXiv 2407.15595), so fewer tokens are revealed than by the exact
    `Bernoulli`, and the last step reveals the rest.
    """

    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        require_moving(self.schedule)

    def count(self, move: Move, rng: Rng) -> Tensor:
        rate = self.schedule.elbo_weight(move.clock.t)
        return _coins(-torch.expm1(-(move.clock.t - move.s) * rate), move.clock, rng) + move.n_remasked


@UNMASKINGS.register("one")
@dataclass(frozen=True)
class One(Unmasking):
    """One token per step at its hitting time: first-hitting sampling (arXiv 2409.02908, section 4).

    With n tokens masked at time t the next one is revealed at mask_ratio(s) = mask_ratio(t) u^(1/n). The NFE of a row
    is its number of masked tokens.
    """

    uses_steps: ClassVar[bool] = False

    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        require_moving(self.schedule)

    def next_time(self, clock: Clock, rng: Rng) -> Tensor:
        uniform = 1 - rng.uniform((len(clock.t), 1))[:, 0]
        ratio = self.schedule.mask_ratio(clock.t) * uniform ** (1 / clock.n_left.clamp(min=1))
        return self.schedule.inverse(1 - ratio).clamp(0, 1)

    def query_time(self, move: Move) -> Tensor:
        """The hitting time itself."""
        return move.s

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        return move.clock.n_left.clamp(max=1)


def _coins(chance: Tensor, clock: Clock, rng: Rng) -> Tensor:
    """(B,) int64, successes among n_left tokens of chance (B,).

    L coins per row, so that the random stream of a row does not depend on other rows.
    """
    is_success = rng.uniform((len(chance), clock.length)) < chance[:, None]
    is_token = torch.arange(clock.length) < clock.n_left[:, None]
    return (is_success & is_token).sum(1)
