"""How good images are: closeness to real ones, agreement with their labels, reconstruction, use of the codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio

from maskgen.eval.features import FeatureExtractor
from maskgen.eval.frechet import Moments, frechet_distance
from maskgen.predictions import NULL


@dataclass(frozen=True)
class ImageResult:
    """What is known of a set of images.

    Attributes:
        extractor: name of the network that looked at them.
        n: number of images.
        moments: of their features.
        n_labelled: images that had a label; the accuracies are over them.
        accuracy: share of them that the network puts in the class of their label; None if no image has one.
        class_accuracy: the same for each class; None where there was no image of it.
    """

    extractor: str
    n: int
    moments: Moments
    n_labelled: int
    accuracy: float | None
    class_accuracy: tuple[float | None, ...]


class ImageScore:
    """Takes in images and the labels they were asked for, batch by batch."""

    def __init__(self, extractor: FeatureExtractor, n_classes: int) -> None:
        self.extractor = extractor
        self.n_classes = n_classes
        self._moments = Moments()
        self._n_labelled = torch.zeros(n_classes, dtype=torch.int64)
        self._n_right = torch.zeros(n_classes, dtype=torch.int64)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Images uint8 (B, C, H, W), labels (B,) int64, `NULL` where none was asked for.

        Raises:
            ValueError: lengths that differ, a label out of range, or features that are not finite.
        """
        labels = labels.cpu()
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images need as many labels, got shape {tuple(labels.shape)}")
        if bool(((labels != NULL) & ((labels < 0) | (labels >= self.n_classes))).any()):
            limit = f"{NULL} (none) or in [0, {self.n_classes})"
            raise ValueError(f"labels must be {limit}, got {int(labels.min())} to {int(labels.max())}")
        features, logits = self.extractor(images)
        self._moments.update(features)
        is_right = logits.argmax(1) == labels
        self._n_labelled += torch.bincount(labels[labels != NULL], minlength=self.n_classes)
        self._n_right += torch.bincount(labels[is_right], minlength=self.n_classes)

    def result(self) -> ImageResult:
        """Of all images taken in so far; later updates do not alter it."""
        n_labelled = int(self._n_labelled.sum())
        return ImageResult(
            extractor=self.extractor.name,
            n=self._moments.n,
            moments=self._moments.merge(Moments()),
            n_labelled=n_labelled,
            accuracy=_share(int(self._n_right.sum()), n_labelled),
            class_accuracy=tuple(map(_share, self._n_right.tolist(), self._n_labelled.tolist())),
        )


def compare(images: ImageResult, reference: ImageResult) -> float:
    """Fréchet distance of two sets of images.

    Raises:
        ValueError: sets seen through different extractors, or with fewer than two images.
    """
    if images.extractor != reference.extractor:
        raise ValueError(
            f"images seen by {images.extractor!r} and by {reference.extractor!r} do not compare; use one extractor"
        )
    return frechet_distance(images.moments, reference.moments)


def psnr(images: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) with one MSE over the whole set; inf if nothing differs.

    Both (N, C, H, W) float in [0, 1].

    Raises:
        ValueError: shapes that differ, no images, or images that are not floating point.
    """
    if images.shape != reference.shape or not images.numel():
        raise ValueError(f"psnr needs two sets of one shape, got {tuple(images.shape)} and {tuple(reference.shape)}")
    if not (images.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"psnr takes floating point images in [0, 1], got {images.dtype} and {reference.dtype}")
    metric = PeakSignalNoiseRatio(data_range=1.0).set_dtype(torch.float64)
    metric.update(images.detach().cpu().double(), reference.detach().cpu().double())
    return float(metric.compute())


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


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
