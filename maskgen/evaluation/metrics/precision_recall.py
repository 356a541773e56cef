"""`--metric precision-recall`."""

from __future__ import annotations

from dataclasses import asdict

from maskgen.evaluation.metrics.manifold import manifold
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.report import Entry

K = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""Neighbours that set the radius of a ball, as published."""


@FEATURE_METRICS.register("precision-recall")
class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage of the samples in feature space."""

    default_of = ("adm",)
    least = 6

    def entries(self, scored: Scored) -> list[Entry]:
        found = asdict(manifold(*scored.features))
        return [scored.entry(f"{name}[{scored.protocol}, k={K[name]}]", value) for name, value in found.items()]
