"""`maskgen evaluate --metric inpainting`: test images with a hole, completed, against what was there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.pixels import to_float
from maskgen.data.base import ImageSplit
from maskgen.evaluation.metrics.scored import Scored, notes
from maskgen.evaluation.metrics.statistics import Collector
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.report import Entry, Report, publish
from maskgen.pipelines.arguments import slices
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.edit import Edit
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.image import ImagePipeline
from maskgen.tokenizers import ImageTokenizer

from .evaluate import Ground, ground_of
from .judges import DEFAULT, pick_extractor, require_fit
from .metric import METRICS, metric
from .nfe import NFE, CountedDenoiser
from .pictures import check_writable

BATCH = 250


@METRICS.register("inpainting")
@metric("image")
def run(
    source: str,
    /,
    *,
    num: int | None = None,
    completions: int = 4,
    hole: str = "center",
    seed: int = 0,
    output: str | None = None,
    protocol: str = DEFAULT,
    weights: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Test images with a hole, completed: distance, error and diversity of the completions.

    Each of `num` images (1,000 if there are), evenly spread, is completed several times. Completion k of the i-th image
    has seed `seed` + i `completions` + k; a network with classes is given the image's. Known pixels stay.

    Raises:
        UserError: a checkpoint, protocol, hole or output that cannot be used, or too few images.
    """
    path = check_writable(output, (".json",)) if output else None
    if completions < 2:
        raise UserError(f"--completions must be at least 2, got {completions}: diversity needs several")
    place = pick_device(device)
    checkpoint = read_checkpoint(source)
    region = Edit.of(torch.zeros(checkpoint.image_shape, dtype=torch.uint8), hole, checkpoint.image_shape).wanted
    pipeline = ImagePipeline(checkpoint, place)
    generator = pipeline.with_sampler(**choices)
    extractor = pick_extractor(protocol, weights, place)
    require_fit(extractor, checkpoint)
    ground = ground_of(checkpoint, extractor)
    num = min(1000, len(ground.test)) if num is None else num
    if not 2 <= num <= len(ground.test):
        raise UserError(f"--num must be 2 to {len(ground.test)}, the test images there are, got {num}")
    painter = Painter(generator, bool(pipeline.classes), region, completions, seed)
    sampler = {"checkpoint": source, "step": checkpoint.step, **settings_of(generator), "hole": hole}
    made = {"seed": seed, "sampler": sampler, "facts": {"completions": completions}}
    return publish(_report(ground, painter, num, made), path)


def _report(ground: Ground, painter: Painter, num: int, made: dict[str, object]) -> Report:
    """Complete `num` test images and score the completions."""
    found = Completions(ground.extractor, painter.hole, painter.n)
    for batch in tqdm(painter(ground.test, num), "completions", unit="batch", disable=None):
        found.add(batch)
    scored = ground.scored(found.sets[0].result("completed images"), "completed images", **made)
    whole = scored.distance(found.real.result("images without holes"), of="images without holes")
    others = [whole, *found.entries(scored)]
    return Report(scored.distance(), ground.floor(), others=others, notes=notes(scored))


@dataclass(frozen=True)
class Painted:
    """Images (B, C, H, W) uint8 and their completions (K, B, C, H, W); what these took."""

    first: int
    images: Tensor
    completed: Tensor
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Painter:
    """Completes images.

    Attributes:
        generator: what makes tokens.
        has_classes: whether it is given the class of an image.
        hole: (1, H, W) bool, the pixels to generate.
        n: completions of each.
        seed: of the first.
    """

    generator: Generator
    has_classes: bool
    hole: Tensor
    n: int
    seed: int

    def __call__(self, split: ImageSplit, num: int) -> Iterator[Painted]:
        """`num` images of a split, evenly spread."""
        for rows in slices(num, BATCH):
            index = [i * len(split) // num for i in range(rows.start, rows.stop)]
            images, labels = split.__getitems__(index)
            yield self._paint(rows.start, images, labels)

    def _paint(self, first: int, images: Tensor, labels: Tensor) -> Painted:
        tokenizer, device = self.generator.tokenizer, self.generator.device
        assert isinstance(tokenizer, ImageTokenizer)
        known = tokenizer.known(to_float(images.to(device)), self.hole[None].to(device))
        counted = CountedDenoiser(self.generator.denoiser)
        generator = replace(self.generator, denoiser=counted)
        began, sets = time.perf_counter(), []
        for k in range(self.n):
            seeds = [self.seed + (first + row) * self.n + k for row in range(len(images))]
            made = generator.images(seeds, labels if self.has_classes else None, known)
            sets.append(torch.where(self.hole, made, images))
        return Painted(first, images, torch.stack(sets), time.perf_counter() - began, counted.n_rows)


@dataclass
class Completions:
    """Statistics of completions, image by image.

    Attributes:
        extractor: computes the features.
        hole: (1, H, W) bool, the pixels to generate.
        n: completions of each image.
        sets: of the first completions of all images, the second, ...
    """

    extractor: Extractor
    hole: Tensor
    n: int
    sets: list[Collector] = field(init=False)
    real: Collector = field(init=False)
    errors: list[Tensor] = field(default_factory=list)
    spreads: list[Tensor] = field(default_factory=list)
    n_evaluations: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.sets = [Collector(self.extractor, keeps=True) for _ in range(self.n)]
        self.real = Collector(self.extractor, keeps=True)

    def add(self, batch: Painted) -> None:
        self.real.update(batch.images, first=batch.first)
        for one, images in zip(self.sets, batch.completed, strict=True):
            one.update(images, first=batch.first)
        inside = to_float(batch.completed.masked_select(self.hole).view(*batch.completed.shape[:2], -1))
        truth = to_float(batch.images.masked_select(self.hole).view(len(batch.images), -1))
        self.errors.append((inside - truth).square().mean((0, 2)))  # (B,)
        self.spreads.append(_over_pairs(inside, lambda one, other: (one - other).square().mean(-1).sqrt()))
        self.n_evaluations += batch.evaluations
        self.seconds += batch.seconds

    def entries(self, scored: Scored) -> list[Entry]:
        """All but the distance, each a mean over images with its standard error."""
        pools = torch.stack([_pool(one) for one in self.sets])  # (K, N, D)
        away = (pools - _pool(self.real)).norm(dim=-1).mean(0)
        apart = _over_pairs(pools, lambda one, other: (one - other).norm(dim=-1))
        each = {
            "squared_error": torch.cat(self.errors),
            f"feature_distance[{scored.protocol}]": away,
            "pixel_diversity": torch.cat(self.spreads),
            f"feature_diversity[{scored.protocol}]": apart,
        }
        made = [_entry(name, values, scored) for name, values in each.items()]
        n = pools.shape[0] * pools.shape[1]
        cost = {NFE: self.n_evaluations / n, "seconds_per_sample": self.seconds / n}
        return made + [Entry(name, scored.of, value, n, **scored.made) for name, value in cost.items()]


def _entry(name: str, values: Tensor, scored: Scored) -> Entry:
    """The mean of values (N,), one an image."""
    error = float(values.double().std() / len(values) ** 0.5)
    return Entry(name, scored.of, float(values.double().mean()), len(values), standard_error=error, **scored.made)


def _pool(collector: Collector) -> Tensor:
    """(N, D) of every image."""
    features = collector.result("images").features
    assert features is not None
    return features


def _over_pairs(sets: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(N,) the mean distance of two completions of each image; sets (K, N, ...)."""
    return torch.stack([distance(one, other) for one, other in itertools.combinations(sets, 2)]).mean(0)
