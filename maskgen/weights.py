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


def uniform(schedule: Schedule, t: Tensor) -> Tensor:  # noqa: ARG001 - one signature for the table
    """1: MaskGIT, MAGE, eMIGM."""
    return torch.ones_like(t)


WEIGHTS: dict[str, Weight] = {"elbo": elbo, "uniform": uniform}
