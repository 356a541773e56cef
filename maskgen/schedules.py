"""Masking schedules: alpha(t), its derivative and its inverse stand together.

alpha(t) is the chance that a token is still visible at time t and falls from 1 (t = 0, data) to 0 (t = 1, nothing
left); a Gaussian process reads the same function as signal power. Two entries bend that and say so: `Exponential`
ends at exp(-rate) and `TruncatedNormal` starts below 1.

All methods are elementwise on float tensors and keep shape and dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.registry import Registry

Rounding = Literal["masked", "revealed"]


class Schedule(ABC):
    """A falling alpha(t). A final class is a frozen dataclass whose fields are its recipe keys."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Chance that a token is visible at time t in [0, 1]."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / d t, <= 0."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which alpha is left."""

    def mask_ratio(self, t: Tensor) -> Tensor:
        """1 - alpha(t)."""
        return 1 - self.alpha(t)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): what the bound multiplies the masked cross-entropy with (MD4, eq. 5)."""
        return -self.alpha_dot(t) / self.mask_ratio(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / (1 - alpha))."""
        alpha = self.alpha(t)
        return torch.log(alpha) - torch.log1p(-alpha)

    def masked_counts(self, n_masked: Tensor, steps: int, rounding: Rounding = "masked") -> Tensor:
        """(steps, B) int64: tokens still masked after each of `steps` decoding steps; the last row is 0.

        A step from time 1 - k/T to 1 - (k+1)/T leaves `floor(n_masked * mask_ratio)` tokens masked, never fewer
        than one before the last step and always at least one fewer than before (MaskGIT, section 3.2).

        Args:
            n_masked: (B,) masked tokens at the start; known tokens are not counted.
            steps: T, at least 1.
            rounding: what is rounded down: the masked count (MaskGIT), or the revealed one (Halton-MaskGIT).
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        ratios = self.mask_ratio(1 - torch.arange(1, steps, dtype=torch.float64) / steps).clamp(1e-6, 1)
        total, left = n_masked.to("cpu", torch.float64), n_masked.cpu()
        rows = []
        for ratio in ratios:
            # The nudge makes exact products (256 * cos(pi/3)) independent of the last bit.
            if rounding == "masked":
                target = torch.floor(total * ratio + 1e-9)
            else:
                target = total - torch.floor(total * (1 - ratio) + 1e-9)
            left = torch.minimum(left - 1, target.long()).clamp(min=1).minimum(left)
            rows.append(left)
        return torch.stack([*rows, torch.zeros_like(left)])


SCHEDULES: Registry[Schedule] = Registry("schedule", Schedule)


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t: MDLM's log-linear noise, LLaDA, MaskGIT's `uniform`."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha


@SCHEDULES.register("polynomial")
@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power: MD4's polynomial family (`power` is the other one)."""

    power: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("power", self.power)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha) ** (1 / self.power)


@SCHEDULES.register("power")
@dataclass(frozen=True)
class Power(Schedule):
    """alpha = (1 - t)^power: MaskGIT's `powK` and `sqrt` (power 0.5), flow matching's kappa = tau^n."""

    power: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("power", self.power)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t) ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha ** (1 / self.power)


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t)): MaskGIT, section 3.3; MD4. The density that the Muse paper calls arccos."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - 2 / math.pi * torch.acos(1 - alpha)


@SCHEDULES.register("cosine_alpha")
@dataclass(frozen=True)
class CosineAlpha(Schedule):
    """alpha = cos(pi/2 t): MDLM's and BD3-LM's `cosine`."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t).clamp(min=0)  # float32 pi/2 is too large: -4e-8 at t = 1

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(alpha)


@SCHEDULES.register("cosine_squared")
@dataclass(frozen=True)
class CosineSquared(Schedule):
    """alpha = cos^2(pi/2 t): MDLM's `cosine squared`; without offset, the cosine of improved DDPM."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t) ** 2

    def alpha_dot(self, t: Tensor) -> Tensor:
        return (-math.pi / 2 * torch.sin(math.pi * t)).clamp(max=0)  # float32 pi is too large: +1e-7 at t = 1

    def inverse(self, alpha: Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(torch.sqrt(alpha))


@SCHEDULES.register("arccos")
@dataclass(frozen=True)
class Arccos(Schedule):
    """alpha = 1 - 2/pi acos(1 - t): Halton-MaskGIT, TiTok, MaskBit. The inverse function of `cosine`'s ratio."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 2 / math.pi * torch.acos(1 - t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -2 / math.pi / torch.sqrt(t * (2 - t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - torch.cos(math.pi / 2 * (1 - alpha))


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential(Schedule):
    """alpha = exp(-rate t): eMIGM (rate 5), MaskGIT's `exp` (rate ln N). Ends at exp(-rate), not at 0."""

    rate: float = 5.0

    def __post_init__(self) -> None:
        _require_positive("rate", self.rate)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.rate * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.rate * torch.exp(-self.rate * t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return -torch.log(alpha) / self.rate


@SCHEDULES.register("log")
@dataclass(frozen=True)
class Log(Schedule):
    """alpha = 1 + ln(1 - t) / rate, 0 once 1 - t <= exp(-rate): MaskGIT's `log` (rate ln N)."""

    rate: float = 5.0

    def __post_init__(self) -> None:
        _require_positive("rate", self.rate)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + torch.log1p(-t) / self.rate).clamp(min=0)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.where(1 - t > math.exp(-self.rate), -1 / (self.rate * (1 - t)), 0.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * (1 - alpha))


@SCHEDULES.register("truncated_normal")
@dataclass(frozen=True)
class TruncatedNormal(Schedule):
    """Mask ratio normal(mean, std) cut to [low, high]: MAGE, section 3.1. Starts at alpha = 1 - low.

    mask_ratio(t) is the quantile function, so a uniform t gives a ratio of that distribution.
    """

    mean: float = 0.55
    std: float = 0.25
    low: float = 0.5
    high: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("std", self.std)
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"need 0 <= low < high <= 1, got low {self.low} and high {self.high}")

    def alpha(self, t: Tensor) -> Tensor:
        below, span = self._span()
        quantile: Tensor = self.mean + self.std * torch.special.ndtri(below + span * t.double())
        return (1 - quantile.clamp(self.low, self.high)).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        z = (self.mask_ratio(t.double()) - self.mean) / self.std
        density = torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.std * self._span()[1])
        return (-1 / density).to(t.dtype)

    def inverse(self, alpha: Tensor) -> Tensor:
        below, span = self._span()
        cumulative: Tensor = torch.special.ndtr((1 - alpha.double() - self.mean) / self.std)
        return ((cumulative - below) / span).clamp(0, 1).to(alpha.dtype)

    def _span(self) -> tuple[float, float]:
        ends = torch.tensor(
            [(self.low - self.mean) / self.std, (self.high - self.mean) / self.std], dtype=torch.float64
        )
        below, above = torch.special.ndtr(ends).tolist()
        return below, above - below


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
