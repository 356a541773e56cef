"""The Gaussian process x_t = a x_0 + b n, and the parametrisations of its networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.processes.base import PROCESSES, Process
from maskgen.schedules import Betas, Fixed, Schedule

Target = Literal["eps", "x_0", "v", "flow", "edm"]
Scale = Literal["preserving", "exploding", "straight"]


@dataclass(frozen=True)
class Scalings:
    """Scaling of a network's input and output: x_0 = c_skip x_t + c_out F(c_in x_t, c_noise). Each (B,).

    Attributes:
        c_in: factor of x_t in the network's input.
        c_noise: time input of the network.
        c_skip, c_out: of x_0, as above, from the network's output F.
    """

    c_in: Tensor
    c_noise: Tensor
    c_skip: Tensor
    c_out: Tensor


@PROCESSES.register("gaussian")
class Gaussian(Process):
    """x_t = a x_0 + b n with n normal; a^2 / b^2 = alpha / (1 - alpha). Tokens (B, L, D).

    One schedule or sigma law serves every target: what the network predicts is a linear function of x_0 and x_t.

    Args:
        schedule: alpha(t), signal power: `betas` (DDPM, DiT, MDT), `log_normal` (EDM), `rectified` (flow) or any other.
        target: what the network predicts: `eps`, n; `x_0`; `v`, (a n - b x_0) / sqrt(a^2 + b^2) (arXiv 2202.00512);
            `flow`, n - x_0; `edm`, the preconditioned one (arXiv 2206.00364, table 1).
        scale: `preserving`, a^2 + b^2 = 1; `exploding`, a = 1 (EDM); or `straight`, a + b = 1 (flow).
        sigma_data: standard deviation of the data, for `edm`.
        steps: T, times are i/T, i = 1 ... T, and the network's time input is i - 1 (DDPM); 0 is continuous time.
    """

    is_field = True
    default_sampler = "dpm"

    def __init__(
        self,
        schedule: Schedule = Betas(),
        target: Target = "v",
        scale: Scale = "preserving",
        sigma_data: float = 0.5,
        steps: int = 0,
    ) -> None:
        if isinstance(schedule, Fixed):
            raise ValueError(
                "schedule fixed has one level of noise and no path to data; use another schedule, e.g. betas"
            )
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        if steps < 0:
            raise ValueError(f"steps must be at least 0 (0 = continuous time), got {steps}")
        if target == "edm" and steps:
            raise ValueError(f"target edm needs continuous time: steps must be 0, got {steps}")
        self.schedule, self.target, self.scale = schedule, target, scale
        self.sigma_data, self.steps = sigma_data, steps

    @property
    def ends_in_noise(self) -> bool:
        """Whether so little signal is left at t = 1 that x_0 does not follow from eps."""
        return float(self.schedule.alpha(torch.ones(1, dtype=torch.float64, device="cpu"))) <= 1e-12

    def require_reverse_steps(self) -> None:
        """Check that the variance of its reverse steps can be learned, by the variational bound.

        Raises:
            ValueError: it cannot: there is no second step, or x_0 does not follow from eps at t = 1.
        """
        if self.steps < 2 or self.scale != "preserving":
            raise ValueError(
                "a learned variance needs process.steps of at least 2 and scale preserving, got "
                f"{self.steps} and {self.scale}; change them, or leave has_variance out"
            )
        if self.target == "eps" and self.ends_in_noise:
            raise ValueError(
                "a learned variance with target eps needs a schedule that ends above 0 (e.g. betas), or its bound is "
                "infinite there; use target v, another schedule, or leave has_variance out"
            )

    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """(B, L, D) standard normal."""
        return rng.normal(x_0.shape, device=x_0.device)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """a x_0 + b noise; t (B,), or (B, L) of each token."""
        a, b = self.amplitudes(t)
        return per_row(a, x_0) * x_0 + per_row(b, x_0) * noise

    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:
        """x_1: noise alone, in a process whose amplitude of it is 1 there."""
        return rng.normal(shape, device=device)

    def amplitudes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes a and b of signal and noise at times t, each of the shape of t, float64."""
        alpha = self.schedule.alpha(t.double())
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        if self.scale == "exploding":
            return torch.ones_like(a), b / a
        return (a, b) if self.scale == "preserving" else (a / (a + b), b / (a + b))

    def snr(self, t: Tensor) -> Tensor:
        """a^2 / b^2 at t (B,), float64."""
        alpha = self.schedule.alpha(t.double())
        return alpha / (1 - alpha)

    def scalings(self, t: Tensor) -> Scalings:
        """Scalings of the network's input and output at times t (B,), float64."""
        a, b = self.amplitudes(t)
        norm = (a.square() + b.square()).sqrt()
        c_noise = self.steps * t.double() - 1 if self.steps else 1000 * t.double()
        one = torch.ones_like(a)
        c_in = 1 / norm if self.scale == "exploding" else one
        if self.target == "eps":
            return Scalings(c_in, c_noise, 1 / a, -b / a)
        if self.target == "x_0":
            return Scalings(c_in, c_noise, torch.zeros_like(a), one)
        if self.target == "v":
            return Scalings(c_in, c_noise, a / norm.square(), -b / norm)
        if self.target == "flow":
            return Scalings(c_in, c_noise, 1 / (a + b), -b / (a + b))
        power = (a * self.sigma_data).square() + b.square()
        c_skip, c_out = a * self.sigma_data**2 / power, b * self.sigma_data / power.sqrt()
        return Scalings(1 / power.sqrt(), (b / a).log() / 4, c_skip, c_out)

    def output_target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The network output F that gives x_0: its training target. x_0 and noise (B, L, D), t (B,)."""
        (a, b), c = self.amplitudes(t), self.scalings(t)
        # From the noise, not from x_t, which has lost small amounts of noise to float32 rounding.
        return per_row((1 - c.c_skip * a) / c.c_out, x_0) * x_0 - per_row(c.c_skip * b / c.c_out, x_0) * noise

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 = c_skip x_t + c_out F, from the network output F and x_t (B, L, D) and t (B,)."""
        c = self.scalings(t)
        return per_row(c.c_skip, x_t) * x_t + per_row(c.c_out, x_t) * output


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """Values (B,) or (B, L) shaped to broadcast with x (B, L, D), (B, 1, 1) or (B, L, 1), of its dtype and device."""
    return values.to(x).view(*values.shape, *[1] * (x.ndim - values.ndim))
