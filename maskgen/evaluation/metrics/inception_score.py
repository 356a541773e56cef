"""`--metric inception-score`."""

from __future__ import annotations

from collections.abc import Sequence

from maskgen.core.errors import UserError
from maskgen.evaluation.metrics.fidelity import N_SPLITS, inception_score, shuffled_inception_score
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.report import Entry

ADM_SPLIT, FEW = 5000, 5000
NO_CLASSES = "--metric inception-score: {} has no classes; use adm or torch-fidelity"


@FEATURE_METRICS.register("inception-score")
class InceptionScore(FeatureMetric):
    """Inception score: how certain and how varied the predicted classes of the samples are."""

    default_of = ("adm",)
    least = N_SPLITS
    keeps_features = True

    def check(self, reference: Statistics) -> str | None:
        """The network must have classes."""
        has_none = reference.features is not None and reference.logits is None
        return NO_CLASSES.format(reference.identity["protocol"]) if has_none else None

    def least_samples(self, protocol: str) -> int:
        return 1 if protocol == "adm" else self.least

    def is_available(self, scored: Scored) -> bool:
        return scored.samples.logits is not None

    def entries(self, scored: Scored) -> list[Entry]:
        logits = scored.samples.logits
        if logits is None:
            raise UserError(NO_CLASSES.format(scored.protocol))
        if scored.protocol == "adm":  # as its evaluator does: in the order of the images
            n_splits, order = -(-len(logits) // ADM_SPLIT), "as they are"
            mean, spread = inception_score(logits, ADM_SPLIT)
        else:
            n_splits, order = N_SPLITS, "shuffled as torch-fidelity does"
            mean, spread = shuffled_inception_score(logits)
        facts = {"splits": n_splits, "order": order, "few images": len(logits) < FEW}
        error = spread / n_splits**0.5 if n_splits > 1 else None
        return [scored.entry(f"inception_score[{scored.protocol}]", mean, standard_error=error, facts=facts)]

    def notes(self, entries: Sequence[Entry]) -> tuple[str, ...]:
        is_few = any(entry.facts.get("few images") for entry in entries)
        return (f"an Inception score of fewer than {FEW} images is too low",) if is_few else ()
