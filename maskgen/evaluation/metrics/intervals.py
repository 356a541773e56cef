"""How sure a Fréchet distance is: its limit of infinitely many images, and its spread over sets of samples.

The percentile bootstrap is not offered: images drawn twice make a set less varied, so its interval lies above the score
and need not contain it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance


@dataclass(frozen=True)
class Extrapolation:
    """`value` at infinitely many samples, the `standard_error` of the fit, and its points: images and distances."""

    value: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolated_distance(
    samples: Tensor, reference: Moments, rng: Rng, n_points: int = 15, least: float = 0.1
) -> Extrapolation:
    """FID-infinity: distances of growing subsets of (N, D) features, linear in 1/N, read at 1/N = 0 (Chong and Forsyth,
    arXiv 1911.07023). The reference keeps its size, and its bias.

    Raises:
        ValueError: fewer than three points, or too few samples to make different subsets.
    """
    n = len(samples)
    sizes = sorted({round(n * (least + (1 - least) * index / (n_points - 1))) for index in range(n_points)})
    if n_points < 3 or len(sizes) < 3 or sizes[0] < 2:
        raise ValueError(f"an extrapolation needs three subsets of two or more samples, got {n} samples")
    distances = []
    for size in sizes:
        rows = rng.permutation(1, n)[0][:size]
        distances.append(frechet_distance(Moments.of(samples[rows]), reference))
    value, error = _intercept([1 / size for size in sizes], distances)
    return Extrapolation(value, error, tuple(sizes), tuple(distances))


@dataclass(frozen=True)
class Repeated:
    """`mean` over independent sets, its `standard_error`, and the 95 % interval of Student's t for the mean."""

    mean: float
    standard_error: float
    low: float
    high: float


def over_sets(values: Sequence[float]) -> Repeated:
    """One score a set of samples.

    Raises:
        ValueError: fewer than two sets.
    """
    if len(values) < 2:
        raise ValueError(f"a spread needs at least 2 sets of samples, got {len(values)}")
    x = torch.tensor(values, dtype=torch.float64)
    mean, error = float(x.mean()), float(x.std()) / math.sqrt(len(x))
    half = _t_quantile(len(x) - 1) * error
    return Repeated(mean, error, mean - half, mean + half)


def _intercept(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the least-squares line, and its standard error."""
    u, v = (torch.tensor(values, dtype=torch.float64) for values in (x, y))
    spread = (u - u.mean()).square().sum()
    slope = ((u - u.mean()) * v).sum() / spread
    intercept = v.mean() - slope * u.mean()
    residual = (v - intercept - slope * u).square().sum() / (len(u) - 2)
    return float(intercept), float((residual * (1 / len(u) + u.mean().square() / spread)).sqrt())


def _t_quantile(degrees: int) -> float:
    """97.5 % of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))
