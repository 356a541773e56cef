"""Classifier-free guidance, written once: uncond + scale (cond - uncond), scale 1 = off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from maskgen.core.positions import prediction_at
from maskgen.core.predictions import Categorical, Condition, Denoise, DenoiseField, Denoiser, FieldDenoiser
from maskgen.core.traits import traits_of
from maskgen.processes import is_mask

Ramp = Literal["constant", "linear", "power_cosine", "revealed"]


@dataclass(frozen=True)
class Guidance:
    """How strongly a sampler is pushed towards its condition.

    The convention is Muse's, `l_u + scale (l_c - l_u)`; where a paper writes `l_c + s (l_c - l_u)`, scale = 1 + s.

    Args:
        scale: strength; 1 is off.
        ramp: how it grows with progress 1 - t: `constant`; `linear`, 1 + (scale - 1)(1 - t); `power_cosine`,
            1 + (scale - 1)(1 - cos(pi (1 - t)^power)) / 2 (MDT, section 4); or `revealed`, 1 + (scale - 1) times the
            share of the row's tokens that are visible after the step (MAR's linear schedule; for samplers that choose
            places before they ask the network).
        power: of `power_cosine`.
        interval: (low, high) in t, for `log_normal` the share of training noise below; outside guidance is off and
            costs no second pass (arXiv 2404.07724).
    """

    scale: float = 1.0
    ramp: Ramp = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"guidance scale must be at least 0 (1 = off), got {self.scale}")
        if not self.power > 0:
            raise ValueError(f"guidance power must be positive, got {self.power}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"guidance interval must lie in [0, 1], low first, got {self.interval}")

    def at(self, t: Tensor, revealed: Tensor | None = None) -> Tensor:
        """The scale at time t, elementwise; `revealed` is the share that ramp `revealed` goes by, else all."""
        progress = 1 - t
        if self.ramp in ("constant", "revealed"):
            share = torch.ones_like(t) if revealed is None else revealed
        elif self.ramp == "linear":
            share = progress
        else:
            share = (1 - torch.cos(math.pi * progress**self.power)) / 2
        return torch.where(self._is_inside(t), 1 + (self.scale - 1) * share, 1.0)

    def is_on(self, t: Tensor) -> bool:
        """Whether a batch at times t (B,) needs a second pass."""
        return bool((self.at(t) != 1).any())

    def _is_inside(self, t: Tensor) -> Tensor:
        return (t >= self.interval[0]) & (t <= self.interval[1])

    @overload
    def bind(
        self, denoiser: Denoiser, cond: Condition | None, null: Condition | None = None, mask_id: int = ...
    ) -> Denoise: ...
    @overload
    def bind(
        self, denoiser: FieldDenoiser, cond: Condition | None, null: Condition | None = None, mask_id: int = ...
    ) -> DenoiseField: ...
    def bind(self, denoiser: Any, cond: Condition | None, null: Condition | None = None, mask_id: int = 0) -> Any:
        """The closure a sampler sees.

        Rows in which no position is asked for are left out of the network's batch. A denoiser with the trait
        `keeps_rows` is always given all rows: it carries something from call to call.

        Args:
            denoiser: the network.
            cond: condition of the batch's rows, None for an unconditional model.
            null: what stands for no condition; `cond.null()` where it is not given.
            mask_id: the id of [MASK] among numbers, for ramp `revealed`.
        """
        return _Guided(self, denoiser, cond, null, mask_id)


@dataclass(frozen=True)
class _Guided:
    """A denoiser with condition and guidance bound; fields as `Guidance.bind` was given them."""

    guidance: Guidance
    denoiser: Any
    cond: Condition | None
    null: Condition | None
    mask_id: int

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Any:
        if where is None or traits_of(self.denoiser).keeps_rows:
            return self._predict(x_t, t, where)
        rows = where.any(1)
        if int(rows.sum()) in (0, len(rows)):
            return self._predict(x_t, t, where)
        cond, null = (None if c is None else c.rows(rows) for c in (self.cond, self.null))
        answer = replace(self, cond=cond, null=null)._predict(x_t[rows], t[rows.to(t.device)], where[rows])
        packed: Any = prediction_at(answer, where[rows])
        return replace(packed, where=where)  # packed in row order: no other row adds any

    def _predict(self, x_t: Tensor, t: Tensor, where: Tensor | None) -> Any:
        # Continuous tokens need the exact time: their noise level is steep at its ends.
        time = t.to(x_t.device, torch.float64 if x_t.is_floating_point() else torch.float32)
        # t lives on the CPU: choosing the number of passes waits for no GPU
        if self.cond is None or not self.guidance.is_on(t):
            return self.denoiser(x_t, time, self.cond, where=where)
        both = self.cond.join(self.null if self.null is not None else self.cond.null())
        twice = None if where is None else where.repeat(2, 1)
        joined = self.denoiser(torch.cat([x_t, x_t]), time.repeat(2), both, where=twice)
        if isinstance(joined, Tensor):
            joined = Categorical(joined, None if joined.ndim == 3 else twice)
        conditional, unconditional = joined.halves()
        return conditional.guide(unconditional, self._scale(x_t, t, where))

    def _scale(self, x_t: Tensor, t: Tensor, where: Tensor | None) -> Tensor:
        """(B,) on the device of x_t."""
        if self.guidance.ramp != "revealed":
            return self.guidance.at(t).to(x_t.device)
        length = x_t.shape[1]
        n_left = is_mask(x_t, self.mask_id).sum(1) - (length if where is None else where.sum(1))
        # Published counts are of at least one token that is left, in the last step too.
        return self.guidance.at(t.to(x_t.device), 1 - n_left.clamp(min=1).double() / length)
