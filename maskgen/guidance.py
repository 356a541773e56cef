"""Classifier-free guidance, written once: uncond + scale (cond - uncond), scale 1 = off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from maskgen.predictions import Condition, Denoise, DenoiseField, Denoiser, FieldDenoiser


@dataclass(frozen=True)
class Guidance:
    """How strongly a sampler is pushed towards its condition.

    The convention is Muse's, `l_u + scale (l_c - l_u)`; where a paper writes `l_c + s (l_c - l_u)`, scale = 1 + s.

    Args:
        scale: strength; 1 is off.
        ramp: how it grows with progress 1 - t: `constant`; `linear`, 1 + (scale - 1)(1 - t); `power_cosine`,
            1 + (scale - 1)(1 - cos(pi (1 - t)^power)) / 2 (MDT, section 4).
        power: of `power_cosine`.
        interval: (low, high) in t, for `log_normal` the share of training noise below; outside guidance is off and
            costs no second pass (arXiv 2404.07724).
    """

    scale: float = 1.0
    ramp: Literal["constant", "linear", "power_cosine"] = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"guidance scale must be at least 0 (1 = off), got {self.scale}")
        if not self.power > 0:
            raise ValueError(f"guidance power must be positive, got {self.power}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"guidance interval must lie in [0, 1], low first, got {self.interval}")

    def at(self, t: Tensor) -> Tensor:
        """The scale at time t, elementwise."""
        progress = 1 - t
        if self.ramp == "constant":
            share = torch.ones_like(t)
        elif self.ramp == "linear":
            share = progress
        else:
            share = (1 - torch.cos(math.pi * progress**self.power)) / 2
        is_inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(is_inside, 1 + (self.scale - 1) * share, 1.0)

    @overload
    def bind(self, denoiser: Denoiser, cond: Condition | None, null: Condition | None = None) -> Denoise: ...
    @overload
    def bind(self, denoiser: FieldDenoiser, cond: Condition | None, null: Condition | None = None) -> DenoiseField: ...
    def bind(self, denoiser: Any, cond: Condition | None, null: Condition | None = None) -> Any:
        """The closure a sampler sees.

        Rows in which no position is asked for are left out of the network's batch. A denoiser with the attribute
        `keeps_rows` is always given all rows: it carries something from call to call.

        Args:
            denoiser: the network.
            cond: condition of the batch's rows, None for an unconditional model.
            null: what stands for no condition; `cond.null()` where it is not given.
        """

        def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Any:
            if where is None or getattr(denoiser, "keeps_rows", False):
                return self._predict(denoiser, cond, null, x_t, t, where)
            rows = where.any(1)
            if int(rows.sum()) in (0, len(rows)):
                return self._predict(denoiser, cond, null, x_t, t, where)
            some_cond, some_null = (None if c is None else c.rows(rows) for c in (cond, null))
            some = self._predict(denoiser, some_cond, some_null, x_t[rows], t[rows.to(t.device)], where[rows])
            return replace(some, where=where)  # packed in row order, so the rest changes nothing

        return denoise

    def _predict(
        self,
        denoiser: Any,
        cond: Condition | None,
        null: Condition | None,
        x_t: Tensor,
        t: Tensor,
        where: Tensor | None,
    ) -> Any:
        scale = self.at(t)  # t lives on the CPU: choosing the number of passes waits for no GPU
        # Continuous tokens need the exact time: their noise level is steep at its ends.
        time = t.to(x_t.device, torch.float64 if x_t.is_floating_point() else torch.float32)
        if cond is None or bool((scale == 1).all()):
            return denoiser(x_t, time, cond, where=where)
        both = cond.join(null if null is not None else cond.null())
        twice = None if where is None else where.repeat(2, 1)
        joined = denoiser(torch.cat([x_t, x_t]), time.repeat(2), both, where=twice)
        conditional, unconditional = joined.halves()
        return conditional.guide(unconditional, scale.to(x_t.device))
