"""Samples beside their reference, and the registry of the metrics that compare features of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.registry import Registry
from maskgen.core.version import __version__
from maskgen.data.base import ImageSource
from maskgen.evaluation.metrics.frechet import frechet_distance
from maskgen.evaluation.metrics.statistics import Progress, Statistics
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.protocols.protocol import score_name
from maskgen.evaluation.report import Entry

NO_IMAGES = "{} is statistics alone; this metric needs the images"


@dataclass(frozen=True)
class Generated:
    """The images behind the features of samples, and the data their model was trained on.

    Attributes:
        data: training and test images.
        images: rows of samples -> images (B, C, H, W) uint8.
        folder: where pictures may be written; None for nowhere.
        progress: wraps batches in a progress bar, given its title.
    """

    data: ImageSource
    images: Callable[[Sequence[int]], Tensor]
    folder: Path | None
    progress: Callable[[str], Progress]


@dataclass(frozen=True)
class Scored:
    """Samples beside what they are compared with.

    Attributes:
        extractor: None where both are statistics files.
        samples, reference: statistics of both.
        of: name of the samples in the report.
        made: seed and sampler of the samples, for the report.
        generated: the samples of a checkpoint, where they are.
    """

    extractor: Extractor | None
    samples: Statistics
    reference: Statistics
    of: str = "samples"
    made: dict[str, Any] = field(default_factory=dict)
    generated: Generated | None = None

    @property
    def protocol(self) -> str:
        return self.samples.identity["protocol"]

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """(N, D) and (M, D) float, features of samples and reference.

        Raises:
            UserError: one side is a statistics file, which has none.
        """
        samples, real = self.samples.features, self.reference.features
        if samples is None or real is None:
            raise UserError(NO_IMAGES.format(self.samples.name if samples is None else self.reference.name))
        return samples, real

    def entry(self, name: str, value: float, **more: Any) -> Entry:
        """A number of the samples against the reference."""
        packages = {} if self.extractor is None else dict(self.extractor.versions)
        about: dict[str, Any] = {
            **{key: self.samples.identity.get(key) for key in ("protocol", "resize", "weights")},
            "format": self.samples.format or None,
            "reference": self.reference.name,
            "reference_digest": self.reference.digest or None,
            "n_reference": self.reference.n,
            "versions": {"maskgen": __version__, "torch": torch.__version__, **packages},
            "n_samples": self.samples.n,
            **self.made,
        }
        return Entry(name, more.pop("of", self.of), value, **{**about, **more})

    def distance(self, samples: Statistics | None = None, **more: Any) -> Entry:
        """The Fréchet distance, of the samples unless others are given.

        Raises:
            UserError: statistics of another protocol or another number of features than the reference's.
        """
        of = samples or self.samples
        if of.identity != self.reference.identity:
            raise UserError(
                f"{of.name} and {self.reference.name} do not compare: {_why(of.identity, self.reference.identity)}"
            )
        widths = [len(one.moments.mean) for one in (of, self.reference)]
        if widths[0] != widths[1]:
            raise UserError(
                f"{of.name} and {self.reference.name} do not compare: {widths[0]} and {widths[1]} features; give "
                "statistics of the same network"
            )
        if samples is not None:
            more = {"n_samples": of.n, "format": of.format or None, **more}
        return self.entry(score_name(self.protocol), frechet_distance(of.moments, self.reference.moments), **more)


def _why(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {str(one.get(key))[:40]} and {str(other.get(key))[:40]}" for key in keys)


class FeatureMetric(ABC):
    """A metric of the features of samples and reference, beside the Fréchet distance.

    Attributes:
        least: number of samples it needs.
        default_of: protocols whose evaluator computes it beside the distance, so that `maskgen fid` does, too.
        keeps_features: whether the features of every image are needed, not their mean and covariance alone.
    """

    least: ClassVar[int] = 2
    default_of: ClassVar[tuple[str, ...]] = ()
    keeps_features: ClassVar[bool] = True

    def check(self, reference: Statistics) -> str | None:
        """Why it cannot be computed against a reference, None if it can; the sample count is checked apart."""
        return NO_IMAGES.format(reference.name) if self.keeps_features and reference.features is None else None

    def least_samples(self, protocol: str) -> int:  # noqa: ARG002 - a subclass may depend on it
        """The number of samples it needs under a protocol."""
        return self.least

    def is_available(self, scored: Scored) -> bool:
        """Whether both sides have what it needs."""
        sides = (scored.samples, scored.reference)
        return not self.keeps_features or all(side.features is not None for side in sides)

    @abstractmethod
    def entries(self, scored: Scored) -> list[Entry]:
        """The numbers.

        Raises:
            UserError: a side lacks what the metric needs.
            ValueError: too few images.
        """

    def notes(self, entries: Sequence[Entry]) -> tuple[str, ...]:  # noqa: ARG002 - most have none
        """What a reader of the numbers should know."""
        return ()


FEATURE_METRICS: Registry[FeatureMetric] = Registry("metric", home="maskgen.evaluation.metrics:FEATURE_METRICS")


def measure(name: str, scored: Scored) -> list[Entry]:
    """The entries of one of `FEATURE_METRICS`.

    Raises:
        UserError: features were not kept, or there are too few images.
    """
    try:
        return FEATURE_METRICS.build(name).entries(scored)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--metric {name}: {error}") from None


def require_able(name: str, reference: Statistics, num: int) -> None:
    """Check before samples are drawn that a metric can be computed from `num` of them.

    Raises:
        UserError: the network has no classes or spatial features, images are not there, or they are too few.
    """
    metric = FEATURE_METRICS.build(name)
    if reason := metric.check(reference):
        raise UserError(reason if reason.startswith("--metric") else f"--metric {name}: {reason}")
    if num < (least := metric.least_samples(reference.identity["protocol"])):
        raise UserError(f"--metric {name} needs at least {least} samples, got --num {num}")


def default_metrics(protocol: str) -> tuple[str, ...]:
    """The metrics that the evaluator of a protocol computes beside the Fréchet distance."""
    return tuple(name for name in FEATURE_METRICS.names() if protocol in FEATURE_METRICS.build(name).default_of)


def keeps_features(names: Sequence[str]) -> bool:
    """Whether one of some metrics needs the features of every image."""
    return any(FEATURE_METRICS.build(name).keeps_features for name in names)


def notes(scored: Scored, metrics: Sequence[str] = (), entries: Sequence[Entry] = ()) -> tuple[str, ...]:
    """What a reader of the scores should know."""
    found = list(scored.extractor.notes) if scored.extractor is not None else []
    width = len(scored.samples.moments.mean)
    few = [one for one in (scored.samples, scored.reference) if one.n is not None and one.n <= width]
    found += [f"{one.name}: {one.n} images for {width} features; the distance is mostly bias" for one in few]
    for name in metrics:
        found += FEATURE_METRICS.build(name).notes(entries)
    formats = (scored.samples.format, scored.reference.format)
    if all(formats) and formats[0] != formats[1] and any("jpeg" in one or "webp" in one for one in formats):
        found.append(f"formats differ ({', '.join(formats)}); JPEG alters scores")
    return tuple(found)
