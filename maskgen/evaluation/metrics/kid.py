"""`--metric kid`."""

from __future__ import annotations

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.kernel import kernel_distance, subset_kernel_distance
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.report import Entry


@FEATURE_METRICS.register("kid")
class KernelInceptionDistance(FeatureMetric):
    """Kernel distance of the features (KID), over all pairs and over subsets."""

    least = 3

    def entries(self, scored: Scored) -> list[Entry]:
        samples, real = scored.features
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
