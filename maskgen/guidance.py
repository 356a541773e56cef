"""Classifier-free guidance, written once: uncond + scale (cond - uncond), scale 1 = off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from maskgen.predictions import Categorical, Condition, Denoise, Denoiser


@dataclass(frozen=True)
class Guidance:
    """How strongly a sampler is pushed towards its condition.

    The convention is Muse's, `l_u + scale (l_c - l_u)`; where a paper writes `l_c + s (l_c - l_u)`, scale = 1 + s.

    Args:
        scale: strength; 1 is off.
        ramp: how it grows with progress 1 - t: `constant`; `linear`, 1 + (scale - 1)(1 - t); `power_cosine`,
            1 + (scale - 1)(1 - cos(pi (1 - t)^power)) / 2 (MDT, section 4).
        power: of `power_cosine`.
        interval: (low, high) in t; outside guidance is off and costs no second pass (arXiv 2404.07724).
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

    def bind(self, denoiser: Denoiser, cond: Condition | None, null: Condition | None = None) -> Denoise:
        """The closure a sampler sees.

        Rows in which no position is asked for are left out of the network's batch. A denoiser with the attribute
        `keeps_rows` is always given all rows: it carries something from call to call.

        Args:
            denoiser: the network.
            cond: condition of the batch's rows, None for an unconditional model.
            null: what stands for no condition; `cond.null()` where it is not given.
        """

        def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
            if where is None or getattr(denoiser, "keeps_rows", False):
                return self._predict(denoiser, cond, null, x_t, t, where)
            rows = where.any(1)
            if int(rows.sum()) in (0, len(rows)):
                return self._predict(denoiser, cond, null, x_t, t, where)
            some = self._predict(
                denoiser, _rows(cond, rows), _rows(null, rows), x_t[rows], t[rows.to(t.device)], where[rows]
            )
            return replace(some, where=where)  # packed in row order, so the rest changes nothing

        return denoise

    def _predict(
        self,
        denoiser: Denoiser,
        cond: Condition | None,
        null: Condition | None,
        x_t: Tensor,
        t: Tensor,
        where: Tensor | None,
    ) -> Categorical:
        scale = self.at(t)  # t lives on the CPU: choosing the number of passes waits for no GPU
        time = t.to(x_t.device, torch.float32)
        if cond is None or bool((scale == 1).all()):
            return denoiser(x_t, time, cond, where=where)
        both = cond.join(null if null is not None else cond.null())
        twice = None if where is None else where.repeat(2, 1)
        joined = denoiser(x_t.repeat(2, 1), time.repeat(2), both, where=twice)
        conditional, unconditional = joined.halves()
        return conditional.guide(unconditional, scale.to(x_t.device))


def _rows(cond: Condition | None, rows: Tensor) -> Condition | None:
    return None if cond is None else Condition(cond.labels[rows])
