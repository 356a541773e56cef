"""Scores beside the Fréchet distance, from the features of samples and of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.core.version import __version__
from maskgen.evaluation.metrics.fidelity import N_SPLITS, inception_score, shuffled_inception_score
from maskgen.evaluation.metrics.frechet import frechet_distance
from maskgen.evaluation.metrics.intervals import extrapolated_distance
from maskgen.evaluation.metrics.kernel import kernel_distance, subset_kernel_distance
from maskgen.evaluation.metrics.manifold import manifold
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.protocols.published import score_name
from maskgen.evaluation.report import Entry

ADM_SPLIT, FEW = 5000, 5000
LEAST = {"kid": 3, "inception-score": N_SPLITS, "precision-recall": 6, "fid-infinity": 15}
"""Samples that a metric needs."""

_NO_CLASSES = "--metric inception-score: {} has no classes; take adm or torch-fidelity"
_NO_SPATIAL = "--metric sfid: only protocol adm has it, and both sets must (mu_s, sigma_s in a file)"
_NO_IMAGES = "{} is statistics alone; this metric needs the images"


@dataclass(frozen=True)
class Scored:
    """Samples beside what they are compared with.

    Attributes:
        extractor: None where both are statistics files.
        made: seed and sampler of the samples, for the report.
    """

    extractor: Extractor | None
    samples: Statistics
    reference: Statistics
    of: str = "samples"
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        return self.samples.identity["protocol"]

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
        """The Fréchet distance, of the samples unless others are given."""
        of = samples or self.samples
        if of.identity != self.reference.identity:
            raise UserError(
                f"{of.name} and {self.reference.name} do not compare: {_why(of.identity, self.reference.identity)}"
            )
        if samples is not None:
            more = {"n_samples": of.n, "format": of.format or None, **more}
        return self.entry(score_name(self.protocol), frechet_distance(of.moments, self.reference.moments), **more)


def _why(one: Any, other: Any) -> str:
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {str(one.get(key))[:40]} and {str(other.get(key))[:40]}" for key in keys)


def measure(name: str, scored: Scored) -> list[Entry]:
    """The entries of one of `MEASURES`.

    Raises:
        UserError: features were not kept, or there are too few images.
    """
    try:
        return MEASURES[name](scored)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--metric {name}: {error}") from None


def require_able(name: str, reference: Statistics, num: int) -> None:
    """See before samples are drawn that a metric can be taken of `num` of them; `reference` is of the same extractor.

    Raises:
        UserError: the network has no classes or spatial features, images are not there, or they are too few.
    """
    protocol = reference.identity["protocol"]
    if name == "inception-score" and reference.features is not None and reference.logits is None:
        raise UserError(_NO_CLASSES.format(protocol))
    if name == "sfid" and reference.spatial is None:
        raise UserError(_NO_SPATIAL)
    if name in ("kid", "precision-recall") and reference.features is None:
        raise UserError(_NO_IMAGES.format(reference.name))
    least = LEAST.get(name, 2)
    if name == "inception-score" and protocol == "adm":
        least = 1
    if num < least:
        raise UserError(f"--metric {name} needs at least {least} samples, got --num {num}")


def _kernel(scored: Scored) -> list[Entry]:
    samples, real = _features(scored)
    exact = kernel_distance(samples, real)
    subsets = subset_kernel_distance(samples, real, Rng.stream("kid subsets"))
    name = f"KID[{scored.protocol}]"
    return [
        scored.entry(name, exact.value, standard_error=exact.standard_error, facts={"estimator": "all pairs"}),
        scored.entry(
            f"{name} of 100 subsets of {min(1000, len(samples), len(real))}",
            subsets.value,
            facts={"estimator": "mean over subsets", "std over subsets": subsets.deviation},
        ),
    ]


def _inception(scored: Scored) -> list[Entry]:
    logits = scored.samples.logits
    if logits is None:
        raise UserError(_NO_CLASSES.format(scored.protocol))
    if scored.protocol == "adm":  # as its evaluator does: in the order of the images
        n_splits, order = -(-len(logits) // ADM_SPLIT), "as they are"
        mean, spread = inception_score(logits, ADM_SPLIT)
    else:
        n_splits, order = N_SPLITS, "shuffled as torch-fidelity does"
        mean, spread = shuffled_inception_score(logits)
    facts = {"splits": n_splits, "order": order, "few images": len(logits) < FEW}
    return [
        scored.entry(
            f"inception_score[{scored.protocol}]",
            mean,
            standard_error=spread / n_splits**0.5 if n_splits > 1 else None,
            facts=facts,
        )
    ]


def _manifold(scored: Scored) -> list[Entry]:
    found = asdict(manifold(*_features(scored)))
    k = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
    return [scored.entry(f"{name}[{scored.protocol}, k={k[name]}]", value) for name, value in found.items()]


def _infinity(scored: Scored) -> list[Entry]:
    samples, _ = _features(scored)
    found = extrapolated_distance(samples, scored.reference.moments, Rng.stream("extrapolation"))
    facts = {"sizes": found.sizes, "distances": found.distances}
    name = scored.distance().name
    return [scored.entry(f"{name} at infinity", found.value, standard_error=found.standard_error, facts=facts)]


def _spatial(scored: Scored) -> list[Entry]:
    one, other = scored.samples.spatial, scored.reference.spatial
    if one is None or other is None:
        raise UserError(_NO_SPATIAL)
    return [scored.entry(f"sFID[{scored.protocol}]", frechet_distance(one, other))]


def _features(scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    samples, real = scored.samples.features, scored.reference.features
    if samples is None or real is None:
        lacking = scored.samples.name if samples is None else scored.reference.name
        raise UserError(_NO_IMAGES.format(lacking))
    return samples, real


MEASURES: dict[str, Callable[[Scored], list[Entry]]] = {
    "kid": _kernel,
    "inception-score": _inception,
    "precision-recall": _manifold,
    "fid-infinity": _infinity,
    "sfid": _spatial,
}
"""Metrics that need no more than the features of both sets."""


def notes(scored: Scored, entries: Sequence[Entry] = ()) -> tuple[str, ...]:
    """What a reader of the scores should know."""
    found = list(scored.extractor.notes) if scored.extractor is not None else []
    width = len(scored.samples.moments.mean)
    few = [one for one in (scored.samples, scored.reference) if one.n is not None and one.n <= width]
    found += [f"{one.name}: {one.n} images for {width} features; the distance is mostly bias" for one in few]
    if any(entry.facts.get("few images") for entry in entries):
        found.append(f"an Inception score of fewer than {FEW} images is too low")
    if scored.samples.format and scored.reference.format and scored.samples.format != scored.reference.format:
        lossy = [f for f in (scored.samples.format, scored.reference.format) if "jpeg" in f or "webp" in f]
        if lossy:
            found.append(f"formats differ ({scored.samples.format}, {scored.reference.format}); JPEG alters scores")
    return tuple(found)
