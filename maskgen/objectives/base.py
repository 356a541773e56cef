"""What an objective is, and the times it is taken at."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from maskgen.predictions import Batch, Loss
from maskgen.registry import Registry
from maskgen.rng import Rng


class Objective(Protocol):
    """Every log is (2,): a sum and its count, so that means stay exact over steps and ranks."""

    baseline: float | None
    """The loss of knowing nothing, where there is one."""

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss: ...


OBJECTIVES: Registry[Objective] = Registry("objective", derived=("process", "vocab_size"))


def draw_times(n: int, rng: Rng, device: torch.device) -> Tensor:
    """(n,) float64 times in (0, 1], one in each of n equal strata, strata permuted over the rows.

    Low-discrepancy times lower the variance of the loss (variational diffusion models, appendix I.1). The permutation
    makes each time uniform by itself, which strata tied to rows are not.
    """
    strata = rng.permutation(1, n, device=device)[0]
    return (strata + 1 - rng.uniform((n,), device=device)) / n


def refuse_dropping(keep_ratio: float) -> None:
    """For objectives under which every token counts.

    Raises:
        ValueError: keep_ratio below 1.
    """
    if keep_ratio < 1:
        raise ValueError(f"only objective masked_tokens drops tokens; use keep_ratio 1, got {keep_ratio}")


def mean_of(value: Tensor) -> Tensor:
    """The log of a scalar: itself and the count 1."""
    return torch.stack([value.detach(), torch.ones_like(value)])


def sum_of(values: Tensor) -> Tensor:
    """The log of many values: their sum and their count."""
    return torch.stack([values.detach().sum(), values.new_tensor(float(values.numel()))])
