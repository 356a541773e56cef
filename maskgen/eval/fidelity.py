"""Scores beside the distances: reconstruction, use of the codebook, Inception score."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from maskgen.eval.features import to_float


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


def inception_score(logits: Tensor, split_size: int) -> tuple[float, float]:
    """exp of the mean divergence of a class distribution from their mean (Salimans et al., arXiv 1606.03498).

    Its mean and standard deviation over consecutive splits of (N, K) logits; it grows with the images in a split.

    Raises:
        ValueError: no images, or a split size below 1.
    """
    if logits.ndim != 2 or not len(logits) or split_size < 1:
        raise ValueError(f"need logits (N, K) and a split size of at least 1, got {tuple(logits.shape)}, {split_size}")
    scores = []
    for part in logits.double().split(split_size):
        log_p = part.log_softmax(1)
        divergence = (log_p.exp() * (log_p - log_p.logsumexp(0) + math.log(len(part)))).sum(1)
        scores.append(divergence.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
