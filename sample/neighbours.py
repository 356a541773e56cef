"""Memorisation: whether samples are copies of training images, in numbers and as a picture of the closest pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.data.base import ImageSource
from maskgen.data.image.grid import grid
from maskgen.data.image.sets import SplitSet
from maskgen.evaluation.metrics.manifold import Memorisation, memorisation
from maskgen.evaluation.metrics.statistics import cached
from maskgen.evaluation.protocols.features import to_channels
from maskgen.evaluation.report import Entry

from .draws import Arm
from .measures import Scored
from .progress import progress_bar

SHOWN = 10
PICTURE = "neighbours.png"


def memorised(scored: Scored, data: ImageSource, arm: Arm, num: int) -> list[Entry]:
    """Entries of the samples and, for comparison, of test images; writes the picture beside the report.

    Raises:
        UserError: the features of the samples are not available.
    """
    extractor, samples = scored.extractor, scored.samples.features
    if extractor is None or samples is None:
        raise UserError("--metric memorisation needs the samples' images")
    train_images, test_images = (SplitSet(data.split(name), f"{data.name} {name} images") for name in ("train", "test"))
    train, test = (
        cached(images, extractor, keeps=True, progress=progress_bar(images.name)).features
        for images in (train_images, test_images)
    )
    assert train is not None
    assert test is not None
    found, honest = memorisation(samples, train), memorisation(test, train)
    if arm.folder is not None:
        rows = found.closest(SHOWN)
        near = [train_images.read(range(row, row + 1))[0] for row in found.nearest[rows].tolist()]
        pairs = _pairs(_chosen(arm, num, rows.tolist()), near)
        with atomic(arm.folder.parent / PICTURE) as file:
            grid(pairs, len(rows)).save(file, "PNG")
    return [*_entries(scored, found, "samples"), *_entries(scored, honest, test_images.name)]


def _chosen(arm: Arm, num: int, rows: list[int]) -> Tensor:
    """The samples of some rows, (len(rows), C, H, W)."""
    found = {
        row: draw.images[row - draw.first]
        for draw in arm.draw(num)
        for row in rows
        if draw.first <= row < draw.first + len(draw.images)
    }
    return torch.stack([found[row] for row in rows])


def _entries(scored: Scored, found: Memorisation, of: str) -> list[Entry]:
    n = len(found.nearest)
    values = {"copied": found.copied, "authentic": found.authentic}
    facts = {"closest": found.closest(SHOWN).tolist(), "nearest": found.nearest[found.closest(SHOWN)].tolist()}
    made = scored.made if of == "samples" else {}
    return [Entry(f"{name}[{scored.protocol}]", of, value, n, facts=facts, **made) for name, value in values.items()]


def _pairs(samples: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
    """Samples in the first row, the nearest training image of each below it."""
    channels = max(samples.shape[1], neighbours[0].shape[0])
    return torch.cat([to_channels(samples, channels), to_channels(torch.stack(list(neighbours)), channels)])
