"""`--metric fid-infinity`."""

from __future__ import annotations

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.intervals import extrapolated_distance
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.report import Entry


@FEATURE_METRICS.register("fid-infinity")
class FidInfinity(FeatureMetric):
    """Fréchet distance extrapolated to infinitely many samples."""

    least = 15

    def check(self, reference: Statistics) -> str | None:  # noqa: ARG002 - the reference's moments are enough
        return None

    def entries(self, scored: Scored) -> list[Entry]:
        samples, _ = scored.features
        found = extrapolated_distance(samples, scored.reference.moments, Rng.stream("extrapolation"))
        facts = {"sizes": found.sizes, "distances": found.distances}
        name = scored.distance().name
        return [scored.entry(f"{name} at infinity", found.value, standard_error=found.standard_error, facts=facts)]
