"""Scores beside the distances: reconstruction, use of the codebook, Inception score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
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
        from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure  # takes seconds to import

        self._psnr = PeakSignalNoiseRatio(data_range=1.0).set_dtype(torch.float64)
        self._ssim = StructuralSimilarityIndexMeasure(data_range=1.0).set_dtype(torch.float64)
        self._is_large = True

    def update(self, restored: Tensor, images: Tensor) -> None:
        """Both (B, C, H, W) uint8."""
        one, other = to_float(restored).double(), to_float(images).double()
        self._psnr.update(one, other)
        self._is_large = min(images.shape[2:]) >= self.WINDOW
        if self._is_large:
            self._ssim.update(one, other)

    def scores(self) -> dict[str, float]:
        """`psnr` in dB, and `ssim` where images are large enough."""
        ssim = {"ssim": float(self._ssim.compute())} if self._is_large else {}
        return {"psnr": float(self._psnr.compute()), **ssim}


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
