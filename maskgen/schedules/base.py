"""Base class of schedules: alpha(t), its derivative and its inverse.

alpha(t) is the probability that a token is visible at time t; it falls from 1 at t = 0 (data) to 0 at t = 1. In a
Gaussian process the same function is the signal power: alpha / (1 - alpha) is the signal-to-noise ratio. Four schedules
are exceptions: `Exponential` ends at exp(-rate), `Betas` at the signal left after its last step, `TruncatedNormal`
starts below 1, and `Fixed` is constant.

All methods are elementwise on float tensors and keep shape and dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.registry import Registry

Rounding = Literal["masked", "revealed"]


class Schedule(ABC):
    """A falling alpha(t). A final class is a frozen dataclass whose fields are its recipe keys."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is visible at time t in [0, 1]."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / d t, <= 0."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time t with alpha(t) = alpha."""

    def mask_ratio(self, t: Tensor) -> Tensor:
        """1 - alpha(t)."""
        return 1 - self.alpha(t)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): weight of the masked cross-entropy in the bound (MD4, eq. 5)."""
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
            rounding: count that is rounded down: the masked one (MaskGIT), or the unmasked one (Halton-MaskGIT).
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


SCHEDULES: Registry[Schedule] = Registry("schedule", Schedule, home="maskgen.schedules:SCHEDULES")


def require_positive(name: str, value: float) -> None:
    """Check that a value is positive.

    Raises:
        ValueError: it is not.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
