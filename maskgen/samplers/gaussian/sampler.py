"""Sampling a Gaussian process: the times of the steps, and the loop over the evaluations of a solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import DenoiseField
from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.samplers.gaussian.singlestep import DpmSingle, singlestep_orders
from maskgen.samplers.gaussian.solvers import (
    Coordinates,
    Ddim,
    Ddpm,
    Dpm,
    Euler,
    FlowEuler,
    Heun,
    Settings,
    Solver,
    SolverName,
)

Spacing = Literal["auto", "trailing", "leading", "linspace", "karras", "logsnr"]
SOLVERS: dict[SolverName, Callable[[Tensor, Settings], Solver]] = {
    "ddpm": Ddpm,
    "ddim": Ddim,
    "dpm": Dpm,
    "dpm_single": DpmSingle,
    "heun": Heun,
    "euler": Euler,
    "flow_euler": FlowEuler,
}
_ENDS = (1e-30, 1 - 1e-15)
"""The smallest and largest times that float64 distinguishes from 0 and 1."""

OnFieldStep = Callable[[int, int, Tensor], None]
"""Called after each evaluation with (evaluations done, their number, estimate of x_0 (B, L, D))."""


@dataclass(frozen=True)
class FieldSampler:
    """From noise to x_0 in `steps` steps, for every process and target of its network.

    Known values are restored after each step with noise of its level (blended diffusion, arXiv 2111.14818, and RePaint
    without resampling), and exactly at the end.

    Args:
        solver: `ddpm`, `ddim`, `dpm` and `dpm_single` (DPM-Solver++, multistep and singlestep), `heun`, `euler` or
            `flow_euler`.
        steps: of the solver; `heun` takes two evaluations in each but the last, `dpm_single` is given the number of
            evaluations.
        spacing: of the times: `trailing`, i/N (arXiv 2305.08891); `leading` and `linspace`, DDPM's and DDIM's of T
            discrete steps; `karras`, evenly in sigma^(1/rho) (arXiv 2206.00364, eq. 5); `logsnr`, evenly in log sigma;
            `auto` is logsnr for `dpm_single`, karras for `heun`, `euler` and the EDM target, else trailing.
        eta: noise of `ddim`, 1 is DDPM's.
        order: of `dpm` and `dpm_single`, 1 to 3.
        variance: of `ddpm` if the network has not learned it: the `small` bound or the `large` one.
        sigma_min, sigma_max, rho: of karras and logsnr spacing, within the range of the process.
        clip: x_0 is limited to [-clip, clip]; 0 is off.
    """

    solver: SolverName
    steps: int
    spacing: Spacing = "auto"
    eta: float = 0.0
    order: int = 2
    variance: Literal["small", "large"] = "small"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not self.rho > 0 or self.clip < 0:
            raise ValueError(f"rho must be positive and clip at least 0, got {self.rho} and {self.clip}")

    @property
    def nfe(self) -> int:
        """Number of function evaluations: forward passes for a batch, guidance not counted."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last step ends at a small noise level instead of at data."""
        return self.solver == "dpm_single" and self.spacing in ("auto", "logsnr")

    @property
    def draws_noise(self) -> bool:
        """Whether its steps add noise, which a temperature can scale."""
        return self.solver == "ddpm" or (self.solver == "ddim" and self.eta > 0)

    @torch.no_grad()
    def __call__(
        self,
        denoise: DenoiseField,
        noise: Tensor,
        rng: Rng,
        *,
        process: Gaussian,
        known: Tensor | None = None,
        on_step: OnFieldStep | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """x_0 (B, L, D).

        Args:
            denoise: the network in the process's x_t and t, with condition and guidance bound.
            noise: (B, L, D) standard normal, the start of sampling.
            rng: `Rng.per_sample`, for samples that depend on their own seed only.
            process: of the network.
            known: (B, L, D), NaN at values to generate.
            on_step: called after each evaluation.
            temperature: factor of the noise of the steps.
        """
        t, alpha = self.knots(process)
        solver = SOLVERS[self._solver_for(process)](alpha, self)
        solver.temperature = temperature
        levels = torch.cat([alpha, alpha.new_ones(1)])
        hole = _Hole(known, rng.fork("known")) if known is not None else None
        x = noise.double() * solver.coordinates(levels[:1]).start.to(noise.device)
        for done, call in enumerate(solver.calls):
            x_in, time = self._inside(x, solver.coordinates(levels[call.level, None]), t[call.level], process)
            field = denoise(x_in.to(noise.dtype), time)
            x_0 = process.clean(field.value.to(x_in), x_in, time)
            x_0 = x_0.clamp(-self.clip, self.clip) if self.clip else x_0
            x = solver.step(x_0, field, x, rng)
            if hole is not None and call.reached is not None:
                x = hole.blend(x, solver.coordinates(levels[call.reached, None]))
            if on_step is not None:
                on_step(done + 1, len(solver.calls), x_0.to(noise.dtype))
        return x.to(noise.dtype)

    def _solver_for(self, process: Gaussian) -> SolverName:
        """`flow_euler` for Euler steps in a process of straight lines."""
        return "flow_euler" if self.solver == "euler" and process.scale == "straight" else self.solver

    @staticmethod
    def _inside(x: Tensor, at: Coordinates, t: Tensor, process: Gaussian) -> tuple[Tensor, Tensor]:
        """A solver's x in the coordinates of the process, and the time of each row."""
        a, b = process.amplitudes(t[None])
        return x * ((a.square() + b.square()).sqrt() / at.norm).to(x), t.expand(len(x))

    def knots(self, process: Gaussian) -> tuple[Tensor, Tensor]:
        """Times (N,) and signal powers alpha (N,), most noise first, float64; N + 1 if it `ends_in_noise`.

        Raises:
            UserError: more steps than a spacing of discrete times has.
        """
        n, spacing = torch.arange(self.steps, dtype=torch.float64), self.spacing
        if spacing == "auto":
            is_in_sigma = self._solver_for(process) in ("heun", "euler") or process.target == "edm"
            spacing = "logsnr" if self.solver == "dpm_single" else "karras" if is_in_sigma else "trailing"
        if spacing == "karras":
            return self._karras(process, n)
        if spacing == "logsnr":
            return self._at_sigma(process, self._log_levels(process))
        n_train, (low, high) = process.steps or 1000, self._range(process)
        if spacing != "trailing" and self.steps > n_train:
            raise UserError(
                f"spacing {spacing} has {n_train} times, got steps {self.steps}; use fewer, or spacing trailing"
            )
        if spacing == "trailing" or self.steps == 1:
            t = high * (1 - n / self.steps)
        elif spacing == "leading":
            t = (n.flip(0) * (n_train // self.steps) + 1) / n_train
        else:
            t = (torch.linspace(0, n_train - 1, self.steps, dtype=torch.float64).round().flip(0) + 1) / n_train
        t = t.clamp(low, high)
        return t, process.schedule.alpha(t)

    def _karras(self, process: Gaussian, n: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._sigma_range(process)
        ends = high ** (1 / self.rho), low ** (1 / self.rho)
        return self._at_sigma(process, (ends[0] + n / max(self.steps - 1, 1) * (ends[1] - ends[0])) ** self.rho)

    def _log_levels(self, process: Gaussian) -> Tensor:
        """Sigma of the evaluations: evenly in its logarithm, for `dpm_single` in each step and between steps."""
        low, high = self._sigma_range(process)
        log_low, log_high = math.log(low), math.log(high)
        if not self.ends_in_noise:
            return torch.linspace(log_high, log_low, self.steps, dtype=torch.float64).exp()
        orders = singlestep_orders(self.steps, self.order, True)
        starts = [index for index, order in enumerate(orders) if order == 1]
        sizes = [end - start for start, end in zip(starts, [*starts[1:], self.steps], strict=True)]
        share = [(step + part / size) / len(sizes) for step, size in enumerate(sizes) for part in range(size)]
        return (log_high + torch.tensor([*share, 1.0], dtype=torch.float64) * (log_low - log_high)).exp()

    def _sigma_range(self, process: Gaussian) -> tuple[float, float]:
        """The lowest and the highest sigma."""
        low, high = (
            float((1 / process.snr(torch.tensor(end, dtype=torch.float64))).sqrt()) for end in self._range(process)
        )
        return max(low, self.sigma_min), min(high, self.sigma_max)

    @staticmethod
    def _at_sigma(process: Gaussian, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Times and signal powers at noise levels."""
        alpha = 1 / (1 + sigma.square())
        return process.schedule.inverse(alpha).clamp(*_ENDS), alpha

    def _range(self, process: Gaussian) -> tuple[float, float]:
        """The first and the last time that this solver evaluates the network at."""
        low = 1 / process.steps if process.steps else 1e-5
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        # For a narrow distribution of sigma the ends can be beyond the times that float64 distinguishes from 0 and 1.
        least, most = process.schedule.inverse(1 / (1 + ends.square())).clamp(*_ENDS).tolist()
        if process.target == "edm":
            return least, most
        is_in_sigma = self._solver_for(process) in ("dpm", "dpm_single", "heun", "euler")
        is_in_sigma |= process.scale == "exploding"
        needs_signal = is_in_sigma or process.target == "eps"
        return low, most if needs_signal and float(process.snr(torch.ones(1))) == 0 else 1.0


@dataclass(frozen=True)
class _Hole:
    """Known values around those to generate."""

    known: Tensor
    rng: Rng

    def blend(self, x: Tensor, at: Coordinates) -> Tensor:
        """x (B, L, D) with the known values at the noise level of these coordinates."""
        noise = self.rng.normal(x.shape, device=x.device)
        noised = at.a.to(x) * self.known + at.b.to(x) * noise
        return torch.where(self.known.isnan(), x, noised)
