"""Fréchet distance between two sets of features, from their first two moments, all in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskgen.core.rng import Rng

SOUND = 1e-3
"""Least ratio of the smallest to the largest diagonal of a Cholesky factor that is squared."""


class Moments:
    """Streaming mean and covariance of feature vectors, exact whatever the batches and their order.

    Sums of squared deviations are merged by the pairwise rule of Chan, Golub and LeVeque (1979), so a large common
    offset costs no digits.
    """

    def __init__(self) -> None:
        self.n = 0
        self._is_counted = True
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of one batch, features (B, D).

        Raises:
            ValueError: another number of dimensions, or a feature that is not finite.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be (B, D), got shape {tuple(features.shape)}")
        x = features.detach().to("cpu", torch.float64)
        if not bool(x.isfinite().all()):
            n_bad = int((~x.isfinite()).any(1).sum())
            raise ValueError(f"features of {n_bad} of {len(x)} images are NaN or infinite; no distance can be computed")
        moments = cls()
        if len(x):
            moments.n, moments._mean = len(x), x.mean(0)
            moments._scatter = (x - moments._mean).mT @ (x - moments._mean)
        return moments

    def update(self, features: Tensor) -> None:
        """Take in a batch, features (B, D); raises as `of` does, and when D changes."""
        merged = self.merge(Moments.of(features))
        self.n, self._mean, self._scatter = merged.n, merged._mean, merged._scatter

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together; neither is altered.

        Raises:
            ValueError: the feature widths differ, or a number of samples is not known.
        """
        if not (self._is_counted and other._is_counted):
            raise ValueError("moments of an unknown number of samples cannot be merged")
        if not (self.n and other.n):
            first = self if self.n else other
            return first._with(first.n, first._mean, first._scatter)
        _check_width(self, other)
        n = self.n + other.n
        delta = other._mean - self._mean
        scatter = self._scatter + other._scatter + torch.outer(delta, delta) * (self.n * other.n / n)
        return self._with(n, self._mean + delta * (other.n / n), scatter)

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self._mean

    @property
    def cov(self) -> Tensor:
        """(D, D) float64, unbiased (divided by n - 1).

        Raises:
            ValueError: fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}; score more images")
        return self._scatter / (self.n - 1)

    def state(self) -> tuple[int, Tensor, Tensor]:
        """n, mean (D,) and sum of squared deviations (D, D): what `from_state` takes, for files and other processes."""
        return self.n, self._mean, self._scatter

    @classmethod
    def from_state(cls, n: int, mean: Tensor, scatter: Tensor) -> Moments:
        """The moments of n samples from their mean (D,) and sum of squared deviations (D, D), float64.

        Raises:
            ValueError: shapes that do not fit, or numbers that are not finite.
        """
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise ValueError(f"need a mean (D,) and a (D, D) matrix, got {tuple(mean.shape)}, {tuple(scatter.shape)}")
        if not bool(mean.isfinite().all() and scatter.isfinite().all()):
            raise ValueError("mean or covariance holds NaN or infinity")
        return cls()._with(n, mean.double(), scatter.double())

    @classmethod
    def from_covariance(cls, mean: Tensor, cov: Tensor) -> Moments:
        """A mean (D,) and a covariance (D, D) of an unknown number of samples, which cannot be merged.

        Raises:
            ValueError: as `from_state`.
        """
        moments = cls.from_state(2, mean, cov)
        moments._is_counted = False
        return moments

    @property
    def known_n(self) -> int | None:
        """The samples; None where only their covariance is known."""
        return self.n if self._is_counted else None

    def _with(self, n: int, mean: Tensor, scatter: Tensor) -> Moments:
        moments = Moments()
        moments.n, moments._mean, moments._scatter = n, mean, scatter
        return moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2): squared 2-Wasserstein distance of two Gaussians.

    With S = F F^T, the last trace is the sum of the singular values of F_a^T F_b. Where S_a has a sound Cholesky factor
    they are the roots of the eigenvalues of F_a^T S_b F_a, at half the cost; where it is (nearly) singular, as with
    fewer images than features, squaring would lose half the digits, so the singular values are taken. No square root
    of a product of matrices is. Equal sets give 0 up to rounding, of either sign.

    Raises:
        ValueError: fewer than two samples in a set, or feature widths that differ.
    """
    cov_a, cov_b = a.cov, b.cov
    _check_width(a, b)
    factor = _cholesky(cov_a)
    if factor is not None and _cholesky(cov_b) is not None:
        overlap = torch.linalg.eigvalsh(factor.mT @ cov_b @ factor).clamp(min=0).sqrt().sum()
    else:
        overlap = torch.linalg.svdvals(_factor(cov_a, a.known_n).mT @ _factor(cov_b, b.known_n)).sum()
    return float((a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)


def standard_error(features: Tensor, reference: Moments) -> float:
    """Standard error of the Fréchet distance of (N, D) features to a reference that is taken as exact.

    First order in the samples (delta method): the distance changes with sample i by 2 (m - m_r)' y + y' G y - tr(G S),
    where y = x_i - m and G = 1 - R (R S R)^(-1/2) R with R = S_r^(1/2). Two distributions that coincide have none to
    this order, so the error is then too small; so it is where N is not well above D.

    Raises:
        ValueError: fewer than two samples.
    """
    own = Moments.of(features)
    root = _power(reference.cov, 0.5)
    gradient = torch.eye(len(root), dtype=torch.float64) - root @ _power(root @ own.cov @ root, -0.5) @ root
    y = features.double() - own.mean
    influence = 2 * y @ (own.mean - reference.mean) + ((y @ gradient) * y).sum(1)
    return float(influence.std() / math.sqrt(len(y)))


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Power of a symmetric positive semidefinite matrix (D, D); directions without spread are left out."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    is_kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    powers = torch.where(is_kept, values.clamp(min=1e-300) ** exponent, 0)
    power: Tensor = (vectors * powers) @ vectors.mT
    return power


def _cholesky(cov: Tensor) -> Tensor | None:
    """L (D, D) with L L^T = cov; None where it is so nearly singular that squares of its spectrum would be noise."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(cov)
    diagonal = factor.diagonal()
    return factor if not failed and float(diagonal.min()) > SOUND * float(diagonal.max()) else None


def _factor(cov: Tensor, n: int | None) -> Tensor:
    """F (D, rank) with F F^T = cov (D, D) of n samples; eigenvalues that are rounding noise are left out.

    Few samples span few directions: these are found first (Halko et al., arXiv 0909.4061), at the cost of n D^2; where
    n is unknown, all are taken.
    """
    basis = None
    if n is not None and 2 * n < len(cov):
        basis = torch.linalg.qr(cov @ Rng.stream("range").normal((len(cov), n)).to(cov)).Q
        cov = basis.mT @ cov @ basis
    values, vectors = torch.linalg.eigh(cov)
    is_kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    factor: Tensor = vectors[:, is_kept] * values[is_kept].sqrt()
    return factor if basis is None else basis @ factor


def _check_width(a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"features have {len(a.mean)} and {len(b.mean)} dimensions; both sets must go through one extractor"
        )
