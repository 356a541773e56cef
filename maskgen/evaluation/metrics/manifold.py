"""What neighbours tell: precision, recall, density, coverage, and whether samples are copies of training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024
"""Rows of a distance matrix held at once."""


@dataclass(frozen=True)
class Manifold:
    """Shares in [0, 1], but for density, which may exceed 1.

    Attributes:
        precision: of samples that lie within a real image's ball (Kynkäänniemi et al., arXiv 1904.06991).
        recall: of real images that lie within a sample's ball.
        density: of real balls around a sample, over k (Naeem et al., arXiv 2002.09797).
        coverage: of real balls that hold a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(samples: Tensor, real: Tensor, k: int = 3, k_density: int = 5) -> Manifold:
    """Features (N, D) of samples and (M, D) of real images; balls reach to the k-th neighbour, its distance included.

    Precision and recall take k = 3, density and coverage k = 5, as published.

    Raises:
        ValueError: sets no larger than k, widths that differ, or features that are not finite.
    """
    _check(samples, real, max(k, k_density))
    real_radii, sample_radii = radii(real, k), radii(samples, k)
    wide = radii(real, k_density)
    n_inside = torch.zeros(len(samples), dtype=torch.float64)
    is_precise, is_recalled = torch.zeros(len(samples), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    is_covered = torch.zeros(len(real), dtype=torch.bool)
    for start, squares in _squared_distances(samples, real):
        stop = start + len(squares)
        is_precise[start:stop] = (squares <= real_radii).any(1)
        is_recalled |= (squares <= sample_radii[start:stop, None]).any(0)
        inside = squares <= wide
        n_inside[start:stop] = inside.sum(1).double()
        is_covered |= inside.any(0)
    share = [float(x.double().mean()) for x in (is_precise, is_recalled, n_inside / k_density, is_covered)]
    return Manifold(*share)


def radii(features: Tensor, k: int) -> Tensor:
    """(N,) squared distance of each of (N, D) features to its k-th neighbour among the others."""
    found = []
    for start, squares in _squared_distances(features, features):
        squares[torch.arange(len(squares)), torch.arange(start, start + len(squares))] = torch.inf
        found.append(squares.topk(k, largest=False).values[:, -1])
    return torch.cat(found)


@dataclass(frozen=True)
class Memorisation:
    """Nearest training images of samples.

    Attributes:
        nearest: (N,) int64, row of the nearest training image.
        distance: (N,) to it.
        copied: share of samples at less than half the distance of their second nearest: near one image alone.
        authentic: share of samples farther from their nearest training image than that is from its own nearest
            (Alaa et al., arXiv 2102.08921).
    """

    nearest: Tensor
    distance: Tensor
    copied: float
    authentic: float

    def closest(self, n: int) -> Tensor:
        """(n,) rows of the samples nearest to a training image."""
        return self.distance.argsort()[:n]


def memorisation(samples: Tensor, train: Tensor, limit: float = 0.5) -> Memorisation:
    """Features (N, D) of samples and (M, D) of training images.

    Raises:
        ValueError: fewer than two training images, widths that differ, or features that are not finite.
    """
    _check(samples, train, 1)
    rows = torch.cat([squares.topk(2, largest=False).indices for _, squares in _squared_distances(samples, train)])
    distances = (samples.float()[:, None] - train.float()[rows]).norm(dim=2)  # exactly, as copies are at 0
    nearest = rows[:, 0]
    own = nearest_squares(train, nearest.unique())[nearest]
    return Memorisation(
        nearest,
        distances[:, 0],
        float((distances[:, 0] < limit * distances[:, 1]).double().mean()),
        float((distances[:, 0].square() > own).double().mean()),
    )


def nearest_squares(features: Tensor, rows: Tensor) -> Tensor:
    """(M,) squared distance of the given rows of (M, D) features to their nearest other; infinite elsewhere."""
    found = torch.full((len(features),), torch.inf, dtype=torch.float32)
    for start, squares in _squared_distances(features[rows], features):
        here = rows[start : start + len(squares)]
        squares[torch.arange(len(here)), here] = torch.inf
        found[here] = squares.amin(1)
    return found


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and squared distances (B, M), float32, of blocks of a to all of b.

    Both are centred first, so that a common offset costs no digits; equal rows are at distance 0 up to rounding.
    """
    centre = b.mean(0)
    a, b = a.float() - centre, b.float() - centre
    for start in range(0, len(a), BLOCK):
        yield start, torch.cdist(a[start : start + BLOCK], b).square()


def _check(samples: Tensor, real: Tensor, least: int) -> None:
    if samples.ndim != 2 or real.ndim != 2 or samples.shape[1] != real.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(samples.shape)} and {tuple(real.shape)}")
    if min(len(samples), len(real)) <= least:
        raise ValueError(f"need more than {least} images in each set, got {len(samples)} and {len(real)}")
    if not bool(samples.isfinite().all() and real.isfinite().all()):
        raise ValueError("features hold NaN or infinity; their neighbours mean nothing")
