"""Masking schedules: alpha(t), the probability that a token is visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.schedules.base import SCHEDULES, Schedule, require_positive


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
        require_positive("power", self.power)

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
        require_positive("power", self.power)

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
    """alpha = exp(-rate t): eMIGM (rate 5), MaskGIT's `exp` (rate ln N). Ends at exp(-rate), not at 0.

    Tokens visible at the end would add exp(-rate) log V to the bound: weight elbo refuses it unless the rate is high.
    """

    rate: float = 5.0

    def __post_init__(self) -> None:
        require_positive("rate", self.rate)

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
        require_positive("rate", self.rate)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + torch.log1p(-t) / self.rate).clamp(min=0)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.where(1 - t > math.exp(-self.rate), -1 / (self.rate * (1 - t)), 0.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * (1 - alpha))


@SCHEDULES.register("log_exp")
@dataclass(frozen=True)
class LogExp(Schedule):
    """alpha = 1 - ln(1 + (e^rate - 1) t) / rate: eMIGM's `log-exp` (rate 5). Like `exponential`, but ends at 0."""

    rate: float = 5.0

    def __post_init__(self) -> None:
        require_positive("rate", self.rate)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - torch.log1p(math.expm1(self.rate) * t) / self.rate).clamp(min=0)

    def alpha_dot(self, t: Tensor) -> Tensor:
        growth = math.expm1(self.rate)
        return -growth / (self.rate * (1 + growth * t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return torch.expm1(self.rate * (1 - alpha)) / math.expm1(self.rate)


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
        require_positive("std", self.std)
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


@SCHEDULES.register("fixed")
@dataclass(frozen=True)
class Fixed(Schedule):
    """The same mask ratio at all times: MAE (0.75), the fixed ratios that MAGE is compared with.

    There is no path from data to nothing: alpha is constant, its derivative 0 and its inverse undefined.
    """

    ratio: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {self.ratio}")

    def alpha(self, t: Tensor) -> Tensor:
        return 0 * t + (1 - self.ratio)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def inverse(self, alpha: Tensor) -> Tensor:  # noqa: ARG002
        raise ValueError("schedule fixed is constant and has no inverse; use another schedule, e.g. cosine or linear")
