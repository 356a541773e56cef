"""Scores beside the distances: reconstruction, use of the codebook, Inception score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.pixels import to_float


class CodebookUse:
    """Counts how often each of the V tokens of a tokenizer occurs."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = torch.zeros(vocab_size, dtype=torch.int64)

    def update(self, tokens: Tensor) -> None:
        """Tokens int64 in [0, V), any shape.

        Raises:
            ValueError: a token out of range.
        """
        vocab_size = len(self.counts)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise ValueError(f"tokens must be in [0, {vocab_size}), got {int(tokens.min())} to {int(tokens.max())}")
        self.counts += torch.bincount(tokens.flatten().cpu(), minlength=vocab_size)

    @property
    def share_used(self) -> float:
        """Share of the codes that occur at all."""
        return float((self.counts > 0).double().mean())

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the codes' frequencies: the number of codes in even use; 0 before any token."""
        frequency = self.counts[self.counts > 0].double() / self.counts.sum()
        return float((-frequency * frequency.log()).sum().exp()) if len(frequency) else 0.0


class Reconstruction:
    """PSNR and SSIM of restored images, uint8, batch by batch. SSIM needs sides of at least 11 pixels, its window."""

    WINDOW = 11

    def __init__(self) -> None:
        self._squared_error, self._n_values = 0.0, 0
        self._ssim, self._n_images = 0.0, 0
        self._is_large = True

    def update(self, restored: Tensor, images: Tensor) -> None:
        """Both (B, C, H, W) uint8."""
        one, other = to_float(restored).double(), to_float(images).double()
        self._squared_error += float((one - other).square().sum())
        self._n_values += one.numel()
        self._is_large = min(images.shape[2:]) >= self.WINDOW
        if self._is_large:
            self._ssim += float(structural_similarity(one, other).sum())
            self._n_images += len(one)

    def scores(self) -> dict[str, float]:
        """`psnr` in dB over all pixels (infinite for equal images), and `ssim`, a mean over images that are large."""
        error = self._squared_error / self._n_values
        psnr = -10 * math.log10(error) if error else math.inf
        return {"psnr": psnr, **({"ssim": self._ssim / self._n_images} if self._is_large else {})}


def structural_similarity(one: Tensor, other: Tensor, sigma: float = 1.5) -> Tensor:
    """SSIM (Wang et al., 2004) of images (B, C, H, W) float in [0, 1] -> (B,).

    Gaussian window of 11 x 11 pixels, K1 = 0.01, K2 = 0.03, images reflected at their borders, as in torchmetrics.
    """
    radius, channels = Reconstruction.WINDOW // 2, one.shape[1]
    offsets = torch.arange(-radius, radius + 1, dtype=one.dtype, device=one.device)
    line = (-((offsets / sigma) ** 2) / 2).exp()
    line = line / line.sum()
    window = (line[:, None] * line).expand(channels, 1, -1, -1)
    both = torch.cat([one, other, one * one, other * other, one * other])
    means = F.conv2d(F.pad(both, (radius,) * 4, mode="reflect"), window, groups=channels)
    mu_1, mu_2, square_1, square_2, product = means.chunk(5)
    variance_1, variance_2 = (square_1 - mu_1**2).clamp(min=0), (square_2 - mu_2**2).clamp(min=0)
    c_1, c_2 = 0.01**2, 0.03**2
    numerator = (2 * mu_1 * mu_2 + c_1) * (2 * (product - mu_1 * mu_2) + c_2)
    ratio = numerator / ((mu_1**2 + mu_2**2 + c_1) * (variance_1 + variance_2 + c_2))
    return ratio.flatten(1).mean(1)


N_SPLITS, SPLIT_SEED = 10, 2020


def inception_score(logits: Tensor, split_size: int) -> tuple[float, float]:
    """exp of the mean divergence of a class distribution from their mean (Salimans et al., arXiv 1606.03498).

    Its mean and standard deviation over consecutive splits of (N, K) logits; it grows with the images in a split, and
    falls if neighbours are of one class.

    Raises:
        ValueError: no images, or a split size below 1.
    """
    if logits.ndim != 2 or not len(logits) or split_size < 1:
        raise ValueError(f"need logits (N, K) and a split size of at least 1, got {tuple(logits.shape)}, {split_size}")
    return _over_splits(logits.split(split_size))


def shuffled_inception_score(logits: Tensor, n_splits: int = N_SPLITS) -> tuple[float, float]:
    """As `inception_score`, over `n_splits` parts of (N, K) logits after the permutation that torch-fidelity takes.

    The rows are shuffled by NumPy's Mersenne Twister from seed 2020 and cut at i N // n_splits, so for the
    same logits the number is torch-fidelity's own.

    Raises:
        ValueError: fewer images than splits.
    """
    if logits.ndim != 2 or not 1 <= n_splits <= len(logits):
        raise ValueError(f"an Inception score over {n_splits} splits needs as many images, got {tuple(logits.shape)}")
    rows = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(logits)))
    ends = [part * len(logits) // n_splits for part in range(1, n_splits)]
    return _over_splits(logits[rows].tensor_split(ends))


def _over_splits(parts: Sequence[Tensor]) -> tuple[float, float]:
    scores = []
    for part in parts:
        log_p = part.double().log_softmax(1)
        divergence = (log_p.exp() * (log_p - log_p.logsumexp(0) + math.log(len(part)))).sum(1)
        scores.append(divergence.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
