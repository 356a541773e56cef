"""`--metric reconstruction`."""

from __future__ import annotations

from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.report import Entry


@FEATURE_METRICS.register("reconstruction")
class ReconstructionQuality(FeatureMetric):
    """PSNR, SSIM and codebook use of the tokenizer; part of every report of fidelity."""

    keeps_features = False

    def check(self, reference: Statistics) -> str | None:  # noqa: ARG002 - it needs no features
        return None

    def entries(self, scored: Scored) -> list[Entry]:  # noqa: ARG002 - the report has them already
        return []
