"""Loss weights w(t), as one table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.schedules import Schedule

Weight = Callable[[Schedule, Tensor], Tensor]
"""(schedule, t) -> weight of a token's loss, of the shape of t: (B,), or (B, S) for streams."""


def elbo(schedule: Schedule, t: Tensor) -> Tensor:
    """-alpha' / (1 - alpha): the sum over masked tokens is then a bound on -log p (MD4, eq. 5)."""
    return schedule.elbo_weight(t)


def elbo_of_steps(schedule: Schedule, t: Tensor, steps: int) -> Tensor:
    """T (alpha_s - alpha_t) / (1 - alpha_t), s = t - 1/T: the same of T discrete steps; t (B,) in 1/T ... 1."""
    alpha_t = schedule.alpha(t)
    return steps * (schedule.alpha((t - 1 / steps).clamp(min=0)) - alpha_t) / (1 - alpha_t)


def uniform(schedule: Schedule, t: Tensor) -> Tensor:  # noqa: ARG001 - one signature for the table
    """1: MaskGIT, MAGE, eMIGM."""
    return torch.ones_like(t)


WEIGHTS: dict[str, Weight] = {"elbo": elbo, "uniform": uniform}


class NoiseWeight(ABC):
    """Weight of the squared error of x_0 in a Gaussian process; a final class is a frozen dataclass."""

    @abstractmethod
    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:
        """Signal-to-noise ratio and the process's c_out, (B,) each -> (B,).

        The error of the network's output is that of x_0 divided by c_out, so one weight covers every target:
        min(SNR, 5) is min(SNR, 5) / SNR on eps and min(SNR, 5) / (SNR + 1) on v.
        """


NOISE_WEIGHTS: Registry[NoiseWeight] = Registry("weight", NoiseWeight, home="maskgen.objectives:NOISE_WEIGHTS")


@NOISE_WEIGHTS.register("target")
@dataclass(frozen=True)
class OnTarget(NoiseWeight):
    """The unweighted squared error of the target: DDPM's L_simple, rectified flow, EDM with its target."""

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return c_out**-2


@NOISE_WEIGHTS.register("x_0")
@dataclass(frozen=True)
class OnClean(NoiseWeight):
    """The unweighted squared error of x_0."""

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return torch.ones_like(snr)


@NOISE_WEIGHTS.register("snr")
@dataclass(frozen=True)
class Snr(NoiseWeight):
    """SNR: the squared error of eps."""

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return snr


@NOISE_WEIGHTS.register("min_snr")
@dataclass(frozen=True)
class MinSnr(NoiseWeight):
    """min(SNR, gamma): Min-SNR (arXiv 2303.09556)."""

    gamma: float = 5.0

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return snr.clamp(max=self.gamma)


@NOISE_WEIGHTS.register("p2")
@dataclass(frozen=True)
class P2(NoiseWeight):
    """SNR / (k + SNR)^gamma: 1 / (k + SNR)^gamma on eps (P2, arXiv 2204.00227, eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return snr / (self.k + snr) ** self.gamma


@NOISE_WEIGHTS.register("edm")
@dataclass(frozen=True)
class Edm(NoiseWeight):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: EDM's, whatever the target (arXiv 2206.00364, table 1)."""

    sigma_data: float = 0.5

    def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:  # noqa: ARG002
        return snr + self.sigma_data**-2
