"""Loss weights w(t), as one table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.schedules import Schedule

Weight = Callable[[Schedule, Tensor], Tensor]
"""(schedule, t (B,)) -> (B,), multiplies a token's loss."""


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
