"""Expectations of the likelihood estimators without chance: every set of masks, every order, every time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgen.evaluation.metrics.bounds import count_bound, time_bound
from maskgen.schedules import Cosine, CosineAlpha, CosineSquared, Linear, Polynomial, Schedule
from tests.toys import Given

SCHEDULES = [Linear(), Cosine(), CosineAlpha(), CosineSquared(), Polynomial(2), Polynomial(0.5)]


def nodes(n: int = 60, power: int = 2) -> tuple[Tensor, Tensor]:
    """Points in (0, 1) and weights of a Gauss rule, for integrands that behave like a root at 0."""
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(n))
    s = (x + 1) / 2
    return s**power, w / 2 * power * s ** (power - 1)


def every_time(model: Any, x_0: Tensor, schedule: Schedule, mask_id: int, steps: int | None = None) -> float:
    """What `time_bound` expects of one sequence x_0 (L,): over all sets of masks, and all times or all steps."""
    grid = torch.arange(1, (steps or 0) + 1).double()
    times, weights = nodes() if steps is None else (grid / steps, torch.full_like(grid, 1 / steps))
    ratio, length, total = schedule.mask_ratio(times)[:, None], len(x_0), 0.0
    for masked in itertools.product([True, False], repeat=length):
        is_masked = torch.tensor(masked)
        level = times if steps is None else times - 0.5 / steps
        rng = Given(1 - level, torch.where(is_masked, 0.0, 1.0).expand(len(times), length))
        nats = time_bound(model, x_0.expand(len(times), -1), schedule, rng, 1, steps, mask_id=mask_id)[:, 0]
        chance = torch.where(is_masked, ratio, 1 - ratio).prod(1)
        # What no time can mask so has no weight, whatever it would cost.
        total += float((weights * chance * nats)[chance > 0].sum())
    return total


def every_order(model: Any, x_0: Tensor, mask_id: int) -> Tensor:
    """What `count_bound` expects, (B, L) -> (B,): over all counts and all orders; up to four tokens."""
    length, found = x_0.shape[1], []
    strata = math.lcm(1, 2, 3, 4)  # the middles of so many strata meet every count of a block equally often
    for order in itertools.permutations(range(length)):
        rng = Given(*[torch.tensor(0.5), torch.tensor(order) / length] * strata)
        found.append(count_bound(model, x_0, rng, strata, mask_id=mask_id).mean(1))
    return torch.stack(found).mean(0)


def within(values: Tensor, expected: float, errors: float = 3.0) -> bool:
    """Whether the mean of independent values is the expected one, to so many standard errors."""
    return abs(float(values.mean()) - expected) < errors * float(values.std()) / math.sqrt(len(values))
