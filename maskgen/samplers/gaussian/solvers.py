"""Solvers over given noise levels, stepped by estimates of x_0: most are schedulers of `diffusers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from maskgen.core.predictions import Field
from maskgen.core.rng import Rng

SolverName = Literal["ddpm", "ddim", "dpm", "dpm_single", "heun", "euler", "flow_euler"]


class Coordinates(NamedTuple):
    """Scales of a solver's x = a x_0 + b n; it starts at `start` times standard noise. Each (1,) float64."""

    a: Tensor
    b: Tensor
    start: Tensor

    @property
    def norm(self) -> Tensor:
        """sqrt(a^2 + b^2)."""
        return (self.a.square() + self.b.square()).sqrt()


def preserving(alpha: Tensor) -> Coordinates:
    """a^2 + b^2 = 1, from unit noise."""
    return Coordinates(alpha.sqrt(), (1 - alpha).sqrt(), torch.ones_like(alpha))


def exploding(alpha: Tensor) -> Coordinates:
    """a = 1, b = sigma, from sigma times unit noise."""
    sigma = ((1 - alpha) / alpha).sqrt()
    return Coordinates(torch.ones_like(alpha), sigma, sigma)


def straight(alpha: Tensor) -> Coordinates:
    """a + b = 1, from unit noise."""
    total = alpha.sqrt() + (1 - alpha).sqrt()
    return Coordinates(alpha.sqrt() / total, (1 - alpha).sqrt() / total, torch.ones_like(alpha))


class Settings(Protocol):
    """Settings of `FieldSampler` that some solvers use."""

    @property
    def eta(self) -> float: ...
    @property
    def order(self) -> int: ...
    @property
    def variance(self) -> Literal["small", "large"]: ...
    @property
    def ends_in_noise(self) -> bool: ...


class Call(NamedTuple):
    """An evaluation at noise level `level`, after which x is at level `reached`; None within a step of several."""

    level: int
    reached: int | None


class Solver:
    """A scheduler of `diffusers` over signal powers (N,), most noise first; level N is data.

    The scheduler's table of noise levels is replaced, so that its step function works for every schedule and spacing.
    It is given x_0, so that it works for every target of the network.

    Args:
        scheduler: with N steps.
        coordinates: scales of its x at a signal power (1,).
        calls: its evaluations.

    Attributes:
        temperature: factor of the noise of its steps, if it adds any (MAR, arXiv 2406.11838, section 4.2).
    """

    temperature: float = 1.0

    def __init__(self, scheduler: Any, coordinates: Callable[[Tensor], Coordinates], calls: list[Call]) -> None:
        self.scheduler, self.coordinates, self.calls = scheduler, coordinates, calls
        self._done = 0

    def step(self, x_0: Tensor, field: Field, x: Tensor, rng: Rng) -> Tensor:
        """x after one more evaluation; all (B, L, D)."""
        timestep = self.scheduler.timesteps[self._done]
        self._done += 1
        return self._step(x_0, field, timestep, x, rng)

    def _step(self, x_0: Tensor, field: Field, timestep: Tensor, x: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        moved: Tensor = self.scheduler.step(x_0, timestep, x).prev_sample
        return moved


class Ddpm(Solver):
    """Ancestral steps (arXiv 2006.11239), with the learned variance if the network has one."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:
        from diffusers import DDPMScheduler

        fixed, learned = (
            DDPMScheduler(len(alpha), prediction_type="sample", clip_sample=False, variance_type=kind)
            for kind in (f"fixed_{settings.variance}", "learned_range")
        )
        self.learned = _products(learned, alpha)
        self.alpha = torch.cat([alpha, alpha.new_ones(1)])
        super().__init__(_products(fixed, alpha), preserving, _in_turn(len(alpha)))

    def _step(self, x_0: Tensor, field: Field, timestep: Tensor, x: Tensor, rng: Rng) -> Tensor:
        if field.variance is None:
            moved: Tensor = self.scheduler.step(x_0, timestep, x, generator=rng.generators).prev_sample
        else:
            both = torch.cat([x_0, field.variance.to(x_0)], -1).mT  # channels second
            moved = self.learned.step(both, timestep, x.mT, generator=rng.generators).prev_sample.mT
        return moved if self.temperature == 1 else self._mean(x_0, x).lerp(moved, self.temperature)

    def _mean(self, x_0: Tensor, x: Tensor) -> Tensor:
        """Mean of the step (DDPM, eq. 7)."""
        now, before = self.alpha[self._done - 1 : self._done + 1].tolist()
        from_clean = before**0.5 * (1 - now / before) / (1 - now)
        from_noisy = (now / before) ** 0.5 * (1 - before) / (1 - now)
        mean: Tensor = from_clean * x_0 + from_noisy * x
        return mean


class Ddim(Solver):
    """Implicit steps (arXiv 2010.02502), with noise for eta > 0."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(len(alpha), prediction_type="sample", clip_sample=False)
        super().__init__(_products(scheduler, alpha), preserving, _in_turn(len(alpha)))
        self.eta = settings.eta

    def _step(self, x_0: Tensor, field: Field, timestep: Tensor, x: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        noise = self.temperature * rng.normal(x.shape, device=x.device) if self.eta else None
        moved: Tensor = self.scheduler.step(x_0, timestep, x, eta=self.eta, variance_noise=noise).prev_sample
        return moved


class Dpm(Solver):
    """DPM-Solver++, multistep (arXiv 2211.01095)."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:
        from diffusers import DPMSolverMultistepScheduler

        n = len(alpha)
        scheduler = DPMSolverMultistepScheduler(max(n, 2), prediction_type="sample", solver_order=settings.order)
        super().__init__(_levels(scheduler, n, _sigmas(alpha)), preserving, _in_turn(n))


class Euler(Solver):
    """Euler steps of the probability flow in sigma (arXiv 2206.00364)."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:  # noqa: ARG002 - one signature for the table
        from diffusers import EulerDiscreteScheduler

        n = len(alpha)
        scheduler = _levels(EulerDiscreteScheduler(max(n, 2), prediction_type="sample"), n, _sigmas(alpha))
        scheduler.is_scale_input_called = True  # x_0 is given: no input to scale
        super().__init__(scheduler, exploding, _in_turn(n))


class Heun(Solver):
    """Heun steps in sigma, two evaluations each but the last (arXiv 2206.00364, algorithm 1)."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:  # noqa: ARG002
        from diffusers import HeunDiscreteScheduler

        n, sigmas = len(alpha), _sigmas(alpha)
        twice = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        calls = [Call(0, None if n > 1 else 1)]
        for level in range(1, n):
            calls += [Call(level, level), Call(level, level + 1 if level == n - 1 else None)]
        scheduler = HeunDiscreteScheduler(max(n, 2), prediction_type="sample")
        super().__init__(_levels(scheduler, n, twice, len(calls)), exploding, calls)


class FlowEuler(Solver):
    """Euler steps along straight lines (rectified flow, arXiv 2209.03003)."""

    def __init__(self, alpha: Tensor, settings: Settings) -> None:  # noqa: ARG002
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.b = straight(alpha).b
        scheduler = FlowMatchEulerDiscreteScheduler(len(alpha))
        scheduler.set_timesteps(sigmas=self.b.tolist())
        super().__init__(scheduler, straight, _in_turn(len(alpha)))

    def _step(self, x_0: Tensor, field: Field, timestep: Tensor, x: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        velocity = (x - x_0) / self.b[self._done - 1].to(x)
        moved: Tensor = self.scheduler.step(velocity, timestep, x).prev_sample
        return moved


def _in_turn(n: int) -> list[Call]:
    return [Call(level, level + 1) for level in range(n)]


def _products(scheduler: Any, alpha: Tensor) -> Any:
    """A scheduler of N discrete steps whose cumulative products of 1 - beta are `alpha` reversed."""
    scheduler.alphas_cumprod = alpha.flip(0)
    scheduler.set_timesteps(len(alpha))
    return scheduler


def _sigmas(alpha: Tensor) -> Tensor:
    """(N + 1,) float64: sigma of the levels, and 0 of data."""
    return torch.cat([((1 - alpha) / alpha).sqrt(), alpha.new_zeros(1)])


def _levels(scheduler: Any, n: int, sigmas: Tensor, n_calls: int | None = None) -> Any:
    """A scheduler with these `sigmas`; its timesteps only count the calls."""
    scheduler.set_timesteps(n)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(n_calls or n, dtype=torch.float32).flip(0)
    scheduler.set_begin_index(0)
    return scheduler
