"""Classifier-free guidance, written once: uncond + scale (cond - uncond), scale 1 = off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.positions import prediction_at
from maskgen.core.predictions import Categorical, Condition, Denoise, DenoiseField, Denoiser, Field, FieldDenoiser
from maskgen.core.traits import traits_of
from maskgen.processes import is_mask
from maskgen.schedules import Fixed, Schedule

Ramp = Literal["constant", "linear", "power_cosine", "revealed"]
TimeMap = Callable[[Tensor], Tensor]
"""Times (B,) -> times (B,), float64 on the CPU."""


@dataclass(frozen=True)
class Guidance:
    """Strength of classifier-free guidance over time.

    The convention is Muse's, `l_u + scale (l_c - l_u)`; where a paper writes `l_c + s (l_c - l_u)`, scale = 1 + s.

    The unconditional prediction is that of the null condition, or of the same row with its prompt masked (LLaDA, arXiv
    2502.09992).

    Args:
        scale: strength; 1 is off.
        ramp: growth with progress p = 1 - t: `constant`; `linear`, 1 + (scale - 1) p; `power_cosine`,
            1 + (scale - 1)(1 - cos(pi p^power)) / 2 (MDT, section 4), p = 1 - t + 1/T for a Gaussian process of T
            discrete steps; or `revealed`, 1 + (scale - 1) times the share of the row's tokens that are visible after
            the step (MAR's linear schedule; for samplers that choose positions before they evaluate the network).
        power: of `power_cosine`.
        interval: (low, high) in t, for `log_normal` the share of training noise below; outside guidance is off and
            takes no second pass (arXiv 2404.07724).
        channels: guide the first channels of an image only (DiT, MDT: 3 of 4 latent channels); 0 is all.
    """

    scale: float = 1.0
    ramp: Ramp = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance scale must be at least 0 and finite (1 = off), got {self.scale}")
        if not self.power > 0:
            raise ValueError(f"guidance power must be positive, got {self.power}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"guidance interval must lie in [0, 1], low first, got {self.interval}")
        if self.channels < 0:
            raise ValueError(f"guidance channels must be at least 0 (0 = all), got {self.channels}")

    def at(self, t: Tensor, revealed: Tensor | None = None, time_step: float = 0.0) -> Tensor:
        """The scale at times t, elementwise.

        Args:
            t: times in [0, 1].
            revealed: share of visible tokens, for ramp `revealed`; 1 if not given.
            time_step: 1/T of a process of T discrete steps, for ramp `power_cosine`.
        """
        if self.ramp in ("constant", "revealed"):
            share = torch.ones_like(t) if revealed is None else revealed
        elif self.ramp == "linear":
            share = 1 - t
        else:
            progress = (1 - t + time_step).clamp(max=1)
            share = (1 - torch.cos(math.pi * progress**self.power)) / 2
        return torch.where(self._is_inside(t), 1 + (self.scale - 1) * share, 1.0)

    def is_on(self, t: Tensor, time_step: float = 0.0) -> bool:
        """Whether a batch at times t (B,) needs a second pass."""
        return bool((self.at(t, time_step=time_step) != 1).any())

    def _is_inside(self, t: Tensor) -> Tensor:
        return (t >= self.interval[0]) & (t <= self.interval[1])

    @overload
    def bind(
        self,
        denoiser: Denoiser,
        cond: Condition | None,
        null: Condition | None = None,
        mask_id: int = ...,
        *,
        network_time: TimeMap | None = None,
        prompt: Tensor | None = None,
    ) -> Denoise: ...
    @overload
    def bind(
        self,
        denoiser: FieldDenoiser,
        cond: Condition | None,
        null: Condition | None = None,
        *,
        time_step: float = ...,
        patch_area: int = ...,
    ) -> DenoiseField: ...
    def bind(
        self,
        denoiser: Denoiser | FieldDenoiser,
        cond: Condition | None,
        null: Condition | None = None,
        mask_id: int = 0,
        *,
        network_time: TimeMap | None = None,
        prompt: Tensor | None = None,
        time_step: float = 0.0,
        patch_area: int = 1,
    ) -> _Guided:
        """The denoiser with condition and guidance bound, as samplers call it.

        Rows without queried positions are left out of the network's batch, unless the denoiser declares the trait
        `keeps_rows`.

        Args:
            denoiser: the network.
            cond: condition of the batch's rows, None for an unconditional model.
            null: the null condition; `cond.null()` by default.
            mask_id: id of [MASK] among discrete tokens, for ramp `revealed` and `prompt`.
            network_time: time of the sampler -> time that the network is given; see `training_time`.
            prompt: (B, L) bool, discrete tokens that are masked in the unconditional pass.
            time_step: see `at`.
            patch_area: numbers of a continuous token per channel.
        """
        return _Guided(self, denoiser, cond, null, mask_id, network_time, prompt, time_step, patch_area)


def training_time(sampler: Schedule, training: Schedule | None) -> TimeMap | None:
    """Times of a sampler -> times of training at the same alpha: `training.inverse(sampler.alpha(t))`.

    A time-conditioned network has seen this share of visible tokens at that time. None, for no change, if the two
    schedules are equal, if training has none or `fixed`, or if the sampler's alpha differs between tokens.
    """
    if training is None or training == sampler or isinstance(training, Fixed):
        return None

    def at_same_alpha(t: Tensor) -> Tensor:
        alpha = sampler.alpha(t)
        return training.inverse(alpha).clamp(0, 1) if alpha.shape == t.shape else t

    return at_same_alpha


@dataclass(frozen=True)
class _Guided:
    """A denoiser with condition and guidance bound; fields are the arguments of `Guidance.bind`."""

    guidance: Guidance
    denoiser: Any
    cond: Condition | None
    null: Condition | None
    mask_id: int
    network_time: TimeMap | None = None
    prompt: Tensor | None = None
    time_step: float = 0.0
    patch_area: int = 1

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Any:
        if where is None or traits_of(self.denoiser).keeps_rows:
            return self._predict(x_t, t, where)
        rows = where.any(1)
        if int(rows.sum()) in (0, len(rows)):
            return self._predict(x_t, t, where)
        cond, null = (None if c is None else c.rows(rows) for c in (self.cond, self.null))
        prompt = None if self.prompt is None else self.prompt[rows]
        answer = replace(self, cond=cond, null=null, prompt=prompt)._predict(
            x_t[rows], t[rows.to(t.device)], where[rows]
        )
        packed: Any = prediction_at(answer, where[rows])
        return replace(packed, where=where)  # packed in row order: no other row adds any

    def _predict(self, x_t: Tensor, t: Tensor, where: Tensor | None) -> Any:
        time = t if self.network_time is None else self.network_time(t)
        # Continuous tokens need the exact time: their noise level is steep at its ends.
        time = time.to(x_t.device, torch.float64 if x_t.is_floating_point() else torch.float32)
        # t lives on the CPU: choosing the number of passes waits for no GPU
        is_alone = self.cond is None and self.prompt is None
        if is_alone or not self.guidance.is_on(t, self.time_step):
            return self.denoiser(x_t, time, self.cond, where=where)
        both = None if self.cond is None else self.cond.join(self.null if self.null is not None else self.cond.null())
        without = x_t if self.prompt is None else x_t.masked_fill(self.prompt, self.mask_id)
        twice = None if where is None else where.repeat(2, 1)
        joined = self.denoiser(torch.cat([x_t, without]), time.repeat(2), both, where=twice)
        if isinstance(joined, Tensor):
            joined = Categorical(joined, None if joined.ndim == 3 else twice)
        conditional, unconditional = joined.halves()
        scale = self._scale(x_t, t, where)
        if not self.guidance.channels:
            return conditional.guide(unconditional, scale)
        if not isinstance(conditional, Field):
            raise UserError("guidance.channels is for Gaussian processes: masked tokens have no channels; use 0 (all)")
        return conditional.guide(unconditional, scale, self.guidance.channels * self.patch_area)

    def _scale(self, x_t: Tensor, t: Tensor, where: Tensor | None) -> Tensor:
        """(B,) on the device of x_t."""
        if self.guidance.ramp != "revealed":
            return self.guidance.at(t, time_step=self.time_step).to(x_t.device)
        length = x_t.shape[1]
        n_left = is_mask(x_t, self.mask_id).sum(1) - (length if where is None else where.sum(1))
        # Published counts are of at least one token that is left, in the last step too.
        return self.guidance.at(t.to(x_t.device), 1 - n_left.clamp(min=1).double() / length)
