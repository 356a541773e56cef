"""Schedules of noise: signal power alpha(t), where alpha / (1 - alpha) = 1 / sigma^2 is the signal-to-noise ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from maskgen.schedules.base import SCHEDULES, Schedule, require_positive

BetaLaw = Literal["linear", "cosine"]


@SCHEDULES.register("betas")
@dataclass(frozen=True)
class Betas(Schedule):
    """alpha at t = i/T is the product of 1 - beta_1 ... 1 - beta_i, log-linear between: DDPM, DiT. Ends above 0.

    Args:
        law: `linear`, beta from 0.1/T to 20/T (DDPM, arXiv 2006.11239: 1e-4 to 0.02 at T = 1,000); or `cosine`,
            the ratios of cos^2, at most 0.999 (arXiv 2102.09672).
        steps: T.
        power: exponent of the linear betas of T = 1,000, which are then scaled to T steps; below 1 adds noise early
            (DiffMAE, arXiv 2304.03283: 0.8).
    """

    law: BetaLaw = "linear"
    steps: int = 1000
    power: float = 1.0

    def __post_init__(self) -> None:
        require_positive("power", self.power)
        if self.power != 1 and self.law != "linear":
            raise ValueError(f"power needs law linear; leave it out with {self.law}, got {self.power}")
        least = int(1000 * 0.02**self.power) + 1
        if self.steps < least:
            raise ValueError(f"steps must be at least {least}, or a linear beta exceeds 1; got {self.steps}")

    def alpha(self, t: Tensor) -> Tensor:
        index, share, logs = self._cell(t)
        return torch.lerp(logs[index], logs[index + 1], share).exp().to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        index, share, logs = self._cell(t)
        slope = self.steps * (logs[index + 1] - logs[index])
        return (slope * torch.lerp(logs[index], logs[index + 1], share).exp()).to(t.dtype)

    def inverse(self, alpha: Tensor) -> Tensor:
        logs = log_products(self.law, self.steps, self.power).to(alpha.device)
        fallen = -alpha.double().log()
        index = (torch.searchsorted(-logs, fallen.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        share = (fallen + logs[index]) / (logs[index] - logs[index + 1])
        return ((index + share) / self.steps).clamp(0, 1).to(alpha.dtype)

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the step before t, position of t between it and the next, and the logarithms of all products."""
        place = t.double() * self.steps
        # The nudge puts i/T into the cell that begins there, in float32 as in float64.
        index = (place.detach() + 1e-3).floor().long().clamp(0, self.steps - 1)
        return index, place - index, log_products(self.law, self.steps, self.power).to(t.device)


@cache
def log_products(law: BetaLaw, steps: int, power: float = 1.0) -> Tensor:
    """(steps + 1,) float64: log of the product of the first 0, 1, ... steps factors 1 - beta."""
    if law == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64, device="cpu") ** power * (1000 / steps)
    else:
        angles = (torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps + 0.008) / 1.008 * math.pi / 2
        left = angles.cos().square()
        betas = (1 - left[1:] / left[:-1]).clamp(max=0.999)
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])


@SCHEDULES.register("log_normal")
@dataclass(frozen=True)
class LogNormal(Schedule):
    """sigma(t) = exp(mean + std z), z the normal quantile of t, so that a uniform t gives EDM's law of log sigma.

    Defaults: arXiv 2206.00364, table 1; MaskDiT has the same, MicroDiT -0.6 and 1.2.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require_positive("std", self.std)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_sigma(t.double())).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        inside = t.double().clamp(1e-12, 1 - 1e-12)  # the limits at 0 and 1 are infinite or zero
        z, alpha = torch.special.ndtri(inside), self.alpha(inside)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return (-2 * alpha * (1 - alpha) * self.std / density).to(t.dtype)

    def inverse(self, alpha: Tensor) -> Tensor:
        wide = alpha.double()
        log_sigma = (torch.log1p(-wide) - wide.log()) / 2
        time: Tensor = torch.special.ndtr((log_sigma - self.mean) / self.std)
        return time.to(alpha.dtype)

    def _log_sigma(self, t: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtri(t)
        return self.mean + self.std * quantile


@SCHEDULES.register("rectified")
@dataclass(frozen=True)
class Rectified(Schedule):
    """sigma = t / (1 - t): straight lines from data to noise (rectified flow, arXiv 2209.03003; SiT)."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -2 * t * (1 - t) / ((1 - t) ** 2 + t**2) ** 2

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).sqrt() / (alpha.sqrt() + (1 - alpha).sqrt())
