"""`--metric memorisation`: whether samples are copies of training images, and a picture of the closest pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.data.image.grid import grid
from maskgen.data.image.sets import SplitSet
from maskgen.evaluation.metrics.manifold import Memorisation, memorisation
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, FeatureMetric, Scored
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.evaluation.metrics.stored import cached
from maskgen.evaluation.protocols.features import to_channels
from maskgen.evaluation.report import Entry

SHOWN = 10
PICTURE = "neighbours.png"


@FEATURE_METRICS.register("memorisation")
class TrainingCopies(FeatureMetric):
    """Shares of samples that copy a training image, and of those that are authentic."""

    def check(self, reference: Statistics) -> str | None:  # noqa: ARG002 - samples and training images are compared
        return None

    def is_available(self, scored: Scored) -> bool:
        return scored.generated is not None and scored.samples.features is not None

    def entries(self, scored: Scored) -> list[Entry]:
        """Of the samples and, as a reference point, of test images; the picture is written beside the report."""
        extractor, generated, samples = scored.extractor, scored.generated, scored.samples.features
        if extractor is None or generated is None or samples is None:
            raise UserError("--metric memorisation needs a checkpoint, its training images and the samples' images")
        data = generated.data
        train_images = SplitSet(data.split("train"), f"{data.name} train images")
        test_images = SplitSet(data.split("test"), f"{data.name} test images")
        train, test = (
            cached(images, extractor, keeps=True, progress=generated.progress(images.name)).features
            for images in (train_images, test_images)
        )
        assert train is not None
        assert test is not None
        found, honest = memorisation(samples, train), memorisation(test, train)
        if generated.folder is not None:
            rows = found.closest(SHOWN)
            near = [train_images.read(range(row, row + 1))[0] for row in found.nearest[rows].tolist()]
            pairs = _pairs(generated.images(rows.tolist()), near)
            with atomic(generated.folder / PICTURE) as file:
                grid(pairs, len(rows)).save(file, "PNG")
        return [*_entries(scored, found, "samples"), *_entries(scored, honest, test_images.name)]


def _entries(scored: Scored, found: Memorisation, of: str) -> list[Entry]:
    n = len(found.nearest)
    values = {"copied": found.copied, "authentic": found.authentic}
    facts = {"closest": found.closest(SHOWN).tolist(), "nearest": found.nearest[found.closest(SHOWN)].tolist()}
    made = scored.made if of == "samples" else {}
    return [Entry(f"{name}[{scored.protocol}]", of, value, n, facts=facts, **made) for name, value in values.items()]


def _pairs(samples: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
    """Samples in a first row, the training image nearest to each below it."""
    channels = max(samples.shape[1], neighbours[0].shape[0])
    return torch.cat([to_channels(samples, channels), to_channels(torch.stack(list(neighbours)), channels)])
