"""Sampling a Gaussian process: times chosen here, steps taken by the schedulers of `diffusers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import DenoiseField
from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.samplers.gaussian.solvers import SOLVERS, Coordinates, SolverName

Spacing = Literal["auto", "trailing", "leading", "linspace", "karras"]
_ENDS = (1e-30, 1 - 1e-15)
"""Times that float64 can tell from 0 and 1."""

OnFieldStep = Callable[[int, int, Tensor], None]
"""Called after each evaluation with (evaluations done, in all, the x_0 it gave (B, L, D))."""


@dataclass(frozen=True)
class FieldSampler:
    """From noise to x_0 in `steps` steps. Works with every process, whatever its network predicts.

    The process says which times there are and what an answer means, a solver takes the steps in the coordinates it
    is made for. Known values are put back after each step with the noise that belongs there (blended diffusion, arXiv
    2111.14818, and RePaint without its resampling), and exactly at the end.

    Args:
        solver: `ddpm`, `ddim`, `dpm` (DPM-Solver++), `heun`, `euler` or `flow_euler`.
        steps: of the solver; `heun` evaluates twice in each but the last.
        spacing: of the times: `trailing`, i/N (arXiv 2305.08891); `leading` and `linspace`, DDPM's and DDIM's of T
            discrete steps; `karras`, evenly in sigma^(1/rho) (arXiv 2206.00364, eq. 5); `auto` is karras for `heun`,
            `euler` and the EDM target, else trailing.
        eta: noise of `ddim`, 1 is DDPM's.
        order: of `dpm`, 1 to 3.
        variance: of `ddpm` where the network has not learned it: the `small` bound or the `large` one.
        sigma_min, sigma_max, rho: of karras spacing, within what the process has.
        clip: x_0 is kept in [-clip, clip]; 0 is off.
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
    def evaluations(self) -> int:
        """Evaluations of the network for a batch, guidance not counted."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def draws_noise(self) -> bool:
        """Whether its steps add noise, which a temperature can multiply."""
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
            noise: (B, L, D) standard normal, what sampling starts from.
            rng: `Rng.per_sample`, for samples that depend on their own seed only.
            process: the network's.
            known: (B, L, D), NaN for values to generate.
            on_step: watches.
            temperature: multiplies the noise of the steps.
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
        """Euler's steps are straight in a process of straight lines."""
        return "flow_euler" if self.solver == "euler" and process.scale == "straight" else self.solver

    @staticmethod
    def _inside(x: Tensor, at: Coordinates, t: Tensor, process: Gaussian) -> tuple[Tensor, Tensor]:
        """x of a solver in the process's own coordinates, and the time of each row."""
        a, b = process.amplitudes(t[None])
        return x * ((a.square() + b.square()).sqrt() / at.norm).to(x), t.expand(len(x))

    def knots(self, process: Gaussian) -> tuple[Tensor, Tensor]:
        """Times (N,) and signal powers alpha (N,), most noise first, float64.

        Raises:
            UserError: more steps than a spacing of discrete times has.
        """
        n, spacing = torch.arange(self.steps, dtype=torch.float64), self.spacing
        if spacing == "auto":
            is_in_sigma = self._solver_for(process) in ("heun", "euler") or process.target == "edm"
            spacing = "karras" if is_in_sigma else "trailing"
        if spacing == "karras":
            return self._karras(process, n)
        n_train, (low, high) = process.steps or 1000, self._range(process)
        if spacing != "trailing" and self.steps > n_train:
            raise UserError(f"spacing {spacing} has {n_train} times, got steps {self.steps}; take fewer, or trailing")
        if spacing == "trailing" or self.steps == 1:
            t = high * (1 - n / self.steps)
        elif spacing == "leading":
            t = (n.flip(0) * (n_train // self.steps) + 1) / n_train
        else:
            t = (torch.linspace(0, n_train - 1, self.steps, dtype=torch.float64).round().flip(0) + 1) / n_train
        t = t.clamp(low, high)
        return t, process.schedule.alpha(t)

    def _karras(self, process: Gaussian, n: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (
            float((1 / process.snr(torch.tensor(end, dtype=torch.float64))).sqrt()) for end in self._range(process)
        )
        low, high = max(low, self.sigma_min), min(high, self.sigma_max)
        ends = high ** (1 / self.rho), low ** (1 / self.rho)
        sigma = (ends[0] + n / max(self.steps - 1, 1) * (ends[1] - ends[0])) ** self.rho
        alpha = 1 / (1 + sigma.square())
        return process.schedule.inverse(alpha).clamp(*_ENDS), alpha

    def _range(self, process: Gaussian) -> tuple[float, float]:
        """First and last time at which this solver evaluates the network."""
        low = 1 / process.steps if process.steps else 1e-5
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        # Of a narrow sigma law the ends can be closer to 0 and 1 than float64 resolves.
        least, most = process.schedule.inverse(1 / (1 + ends.square())).clamp(*_ENDS).tolist()
        if process.target == "edm":
            return least, most
        is_in_sigma = self._solver_for(process) in ("dpm", "heun", "euler") or process.scale == "exploding"
        needs_signal = is_in_sigma or process.target == "eps"
        return low, most if needs_signal and float(process.snr(torch.ones(1))) == 0 else 1.0


@dataclass(frozen=True)
class _Hole:
    """Known values around those to generate."""

    known: Tensor
    rng: Rng

    def blend(self, x: Tensor, at: Coordinates) -> Tensor:
        """x (B, L, D) with what is known, noised as it is at these coordinates."""
        noise = self.rng.normal(x.shape, device=x.device)
        noised = at.a.to(x) * self.known + at.b.to(x) * noise
        return torch.where(self.known.isnan(), x, noised)
