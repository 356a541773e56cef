"""Kernel distance of two sets of features: KID (Bińkowski et al., arXiv 1801.01401), over all pairs and by subsets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import Rng

TILE = 1024
"""Rows and columns of the kernel matrix held at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class KernelDistance:
    """`value`, unbiased, so it may be below zero; `standard_error` by the jackknife over images of both sets."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class SubsetDistance:
    """`value`, the mean over subsets, and the standard deviation over them."""

    value: float
    deviation: float


def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 over all pairs, features (N, D) and (M, D), in float64.

    Raises:
        ValueError: fewer than three images in a set, widths that differ, or features that are not finite.
    """
    _check(a, b, 3)
    n, m = len(a), len(b)
    within_a, within_b, (of_a, of_b) = _others(a), _others(b), _kernel_sums(a, b)
    mean_a, mean_b = within_a.sum() / (n * (n - 1)), within_b.sum() / (m * (m - 1))
    value = mean_a + mean_b - 2 * of_a.sum() / (n * m)
    without_a = _left_out(within_a, of_a, m) + mean_b
    without_b = _left_out(within_b, of_b, n) + mean_a
    variance = sum(
        float((one - one.mean()).square().sum()) * (len(one) - 1) / len(one) for one in (without_a, without_b)
    )
    return KernelDistance(float(value), variance**0.5)


def subset_kernel_distance(a: Tensor, b: Tensor, rng: Rng, n_subsets: int = 100, size: int = 1000) -> SubsetDistance:
    """The mean over random subsets, as KID is usually printed, and the standard deviation over them.

    Subsets overlap, so no error of the mean follows from it: for that take `kernel_distance`.

    Raises:
        ValueError: as `kernel_distance`, or fewer than two subsets.
    """
    _check(a, b, 2)
    if n_subsets < 2:
        raise ValueError(f"a spread needs at least 2 subsets, got {n_subsets}")
    size = min(size, len(a), len(b))
    values = []
    for _ in range(n_subsets):
        x, y = (one[rng.permutation(1, len(one))[0][:size]] for one in (a, b))
        within = (_others(x).sum() + _others(y).sum()) / (size * (size - 1))
        values.append(within - 2 * _kernel_sums(x, y)[0].sum() / size**2)
    found = torch.stack(values)
    return SubsetDistance(float(found.mean()), float(found.std()))


def _others(a: Tensor) -> Tensor:
    """(N,): sum of the kernel of each row with the others."""
    return _kernel_sums(a, a)[0] - (a.double().square().sum(1) / a.shape[1] + 1) ** 3


def _kernel_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) float64: sums of the kernel over the other set, for each row of a and of b."""
    rows, columns = torch.zeros(len(a), dtype=torch.float64), torch.zeros(len(b), dtype=torch.float64)
    for i in range(0, len(a), TILE):
        x = a[i : i + TILE].double() / a.shape[1]
        for j in range(0, len(b), TILE):
            k = (x @ b[j : j + TILE].double().mT).add_(1)
            k = (k * k).mul_(k)
            rows[i : i + TILE] += k.sum(1)
            columns[j : j + TILE] += k.sum(0)
    return rows, columns


def _left_out(within: Tensor, between: Tensor, m: int) -> Tensor:
    """(N,): what each of N images leaves of its set's part of the estimate when it is left out."""
    n = len(within)
    return (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (between.sum() - between) / ((n - 1) * m)


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"a kernel distance needs at least {least} images in each set, got {len(a)} and {len(b)}")
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features hold NaN or infinity; no distance can be computed")
