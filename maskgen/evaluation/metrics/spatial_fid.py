"""`--metric sfid`."""

from __future__ import annotations

from maskgen.core.errors import UserError
from maskgen.evaluation.metrics.frechet import frechet_distance
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.report import Entry

NO_SPATIAL = "--metric sfid: only protocol adm has spatial features, and both sets need them (mu_s, sigma_s in a file)"


@FEATURE_METRICS.register("sfid")
class SpatialFid(FeatureMetric):
    """Fréchet distance of spatial features (sFID), of protocol adm."""

    default_of = ("adm",)
    keeps_features = False

    def check(self, reference: Statistics) -> str | None:
        return NO_SPATIAL if reference.spatial is None else None

    def is_available(self, scored: Scored) -> bool:
        return scored.samples.spatial is not None and scored.reference.spatial is not None

    def entries(self, scored: Scored) -> list[Entry]:
        one, other = scored.samples.spatial, scored.reference.spatial
        if one is None or other is None:
            raise UserError(NO_SPATIAL)
        return [scored.entry(f"sFID[{scored.protocol}]", frechet_distance(one, other))]
