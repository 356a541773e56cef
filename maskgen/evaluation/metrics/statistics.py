"""Feature statistics of a set of images: moments, merged exactly over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskgen.core.devices import gather_over_ranks, my_share
from maskgen.core.errors import UserError
from maskgen.core.predictions import NULL
from maskgen.data.image.sets import ImageSet
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.protocols.features import Extractor, Features

BATCH = 250
Progress = Callable[[Iterator[tuple[int, Tensor]]], Iterator[tuple[int, Tensor]]]
"""Wraps batches, each with the row of its first image, in a progress bar."""


class FeatureError(UserError):
    """Features that are not finite; `row` is the first image that has such."""

    def __init__(self, row: int, n_bad: int, n: int) -> None:
        self.row = row
        super().__init__(
            f"features of image {row} are NaN or infinite ({n_bad} of {n} images of its batch); no distance can be "
            "computed"
        )


@dataclass(frozen=True)
class Statistics:
    """Of a set of images.

    Attributes:
        name: of the set.
        identity: of the extractor: `protocol`, `resize`, `weights`; of a foreign file, the protocol it is taken for.
        moments: of the pooled features.
        spatial: of the features of sFID.
        n: images; None where a file does not say.
        format: of the images' files.
        digest: SHA-256 of the images; of a foreign file, of its mean and covariance.
        features, logits: of every image, (N, D) and (N, K), if they were kept.
        floor: distance of one half of the images to the other, and the images in a half.
        n_labelled, n_right: for each class, images that had that label and those of them that were put there.
    """

    name: str
    identity: Mapping[str, str]
    moments: Moments
    spatial: Moments | None = None
    n: int | None = None
    format: str = ""
    digest: str = ""
    features: Tensor | None = None
    logits: Tensor | None = None
    floor: tuple[float, int] | None = None
    n_labelled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    n_right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that the network puts in the class of their label."""
        n = int(self.n_labelled.sum())
        return int(self.n_right.sum()) / n if n else None


class Collector:
    """Accumulates the statistics of images batch by batch.

    Args:
        extractor: computes the features; labels are counted if it has classes.
        keeps: whether features and logits of every image are kept.
    """

    def __init__(self, extractor: Extractor, keeps: bool = False) -> None:
        self.extractor, self.keeps = extractor, keeps
        self._halves = (Moments(), Moments())
        self._spatial = Moments()
        self._kept: list[Features] = []
        self._n_labelled = torch.zeros(extractor.n_classes, dtype=torch.int64)
        self._n_right = torch.zeros(extractor.n_classes, dtype=torch.int64)

    def update(self, images: Tensor, labels: Tensor | None = None, first: int = 0) -> None:
        """Images uint8 (B, C, H, W); labels (B,) int64, `NULL` where there is none; `first`, row of the first image.

        Raises:
            ValueError: labels that do not fit.
            FeatureError: features that are not finite.
        """
        found = self.extractor(images)
        for name in ("pool", "spatial"):
            _check_finite(getattr(found, name), first)
        parity = (first + torch.arange(len(images))) % 2
        for half, moments in enumerate(self._halves):
            moments.update(found.pool[parity == half])
        if found.spatial is not None:
            self._spatial.update(found.spatial)
        if self.keeps:
            self._kept.append(Features(found.pool, found.logits))
        if labels is not None and found.logits is not None and self.extractor.n_classes:
            self._count(found.logits, labels.cpu())

    def _count(self, logits: Tensor, labels: Tensor) -> None:
        n_classes = len(self._n_labelled)
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"{len(logits)} images need as many labels, got shape {tuple(labels.shape)}")
        if bool(((labels != NULL) & ((labels < 0) | (labels >= n_classes))).any()):
            limit = f"{NULL} (none) or in [0, {n_classes})"
            raise ValueError(f"labels must be {limit}, got {int(labels.min())} to {int(labels.max())}")
        is_right = logits.argmax(1) == labels
        self._n_labelled += torch.bincount(labels[labels != NULL], minlength=n_classes)
        self._n_right += torch.bincount(labels[is_right], minlength=n_classes)

    def result(self, name: str, format: str = "", digest: str = "") -> Statistics:
        """Of all images of all processes so far; all processes must call it together."""
        even, odd = (_merge_ranks(half) for half in self._halves)
        moments = even.merge(odd)
        kept = _joined(self._kept) if self.keeps else {}
        return Statistics(
            name,
            self.extractor.identity,
            moments,
            spatial=spatial if (spatial := _merge_ranks(self._spatial)).n else None,
            n=moments.n,
            format=format,
            digest=digest,
            floor=(frechet_distance(even, odd), min(even.n, odd.n)) if min(even.n, odd.n) > 1 else None,
            n_labelled=sum(gather_over_ranks(self._n_labelled), torch.zeros_like(self._n_labelled)),
            n_right=sum(gather_over_ranks(self._n_right), torch.zeros_like(self._n_right)),
            **kept,
        )


def collect(images: ImageSet, extractor: Extractor, keeps: bool = False, progress: Progress = iter) -> Statistics:
    """The statistics of a set of images; several processes share the work, and all of them get the result.

    `progress` may wrap the batches in a bar.

    Raises:
        UserError: an unreadable image, one of another size, too few images, or features that are not finite.
    """
    if len(images) < 2:
        raise UserError(f"{images.name} holds {len(images)} image; a distance needs at least 2")
    collector, rows = Collector(extractor, keeps), my_rows(len(images), BATCH)
    shape: tuple[int, ...] | None = None
    for first, batch in progress(images.batches(BATCH, rows)):
        shape = shape or tuple(batch.shape[2:])
        if tuple(batch.shape[2:]) != shape and not extractor.mixes_sizes:
            raise UserError(
                f"{images.label(first)} is {batch.shape[2]} x {batch.shape[3]}, earlier images are {shape[0]} x "
                f"{shape[1]}: {extractor.protocol} scores images of one size; bring them to one, or take clean-fid"
            )
        try:
            labels = None if images.labels is None else images.labels[first : first + len(batch)]
            collector.update(batch, labels, first)
        except FeatureError as error:
            raise UserError(f"{images.label(error.row)}: {error}") from None
    return collector.result(images.name, images.format, images.digest())


def my_rows(n: int, size: int) -> list[int]:
    """This process's rows of n images, in whole batches of `size`, so that batches are the same for any number of
    processes."""
    starts = my_share(range(0, n, size))
    return [row for start in starts for row in range(start, min(start + size, n))]


def _merge_ranks(moments: Moments) -> Moments:
    """The moments of all processes together, merged in the order of their ranks."""
    n, mean, scatter = moments.state()
    merged = Moments()
    counts, means, scatters = map(gather_over_ranks, (torch.tensor([n]), mean, scatter.flatten()))
    for count, m, s in zip(counts, means, scatters, strict=True):
        if int(count):
            merged = merged.merge(Moments.from_state(int(count), m, s.view(len(m), len(m))))
    return merged


def _joined(kept: Iterable[Features]) -> dict[str, Tensor | None]:
    """Features and logits of all processes, in the order of their ranks."""
    parts = list(kept)
    found: dict[str, Tensor | None] = {"features": _gathered([one.pool for one in parts])}
    logits = [one.logits for one in parts if one.logits is not None]
    if any(int(one) for one in gather_over_ranks(torch.tensor([len(logits)]))):
        found["logits"] = _gathered(logits)
    return found


def _gathered(parts: list[Tensor]) -> Tensor:
    return torch.cat([one for one in gather_over_ranks(torch.cat(parts) if parts else torch.zeros(0, 1)) if len(one)])


def _check_finite(features: Tensor | None, first: int) -> None:
    if features is None or bool(features.isfinite().all()):
        return
    bad = (~features.isfinite()).any(1).nonzero().flatten()
    raise FeatureError(first + int(bad[0]), len(bad), len(features))
