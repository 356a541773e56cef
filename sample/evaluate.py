"""`maskgen evaluate` of images: a score by a named protocol, with the floors it has to be read against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import Checkpoint, load_model, read_checkpoint
from maskgen.core.devices import device_of, pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path, require_writable
from maskgen.core.pixels import to_float, to_uint8
from maskgen.data.base import ImageSource, ImageSplit
from maskgen.data.image.sets import SplitSet
from maskgen.data.loader import in_order
from maskgen.evaluation.metrics.fidelity import CodebookUse, Reconstruction
from maskgen.evaluation.metrics.intervals import over_sets
from maskgen.evaluation.metrics.scored import (
    FEATURE_METRICS,
    Generated,
    Scored,
    keeps_features,
    measure,
    notes,
    require_able,
)
from maskgen.evaluation.metrics.statistics import BATCH, Collector, Statistics, collect
from maskgen.evaluation.metrics.stored import cached
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.report import Entry, Report, publish, require_no_bench
from maskgen.pipelines.base import HEAD_NFE, settings_of
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.image import ImagePipeline
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.image.patches import PatchTokenizer

from .draws import Arm, Draw, arm_of
from .judges import DEFAULT, pick_extractor, require_fit
from .metric import METRICS, metric
from .nfe import NFE, SCHEDULED_NFE, published_nfe
from .pictures import check_writable
from .progress import progress_bar

FLOOR_IMAGES = 10_000


@METRICS.register("fidelity")
@metric("image", is_default=True, fills_folder=True)
def run(
    source: str,
    /,
    *,
    metrics: Sequence[str] = ("fidelity",),
    num: int = 10_000,
    repeats: int = 1,
    seed: int = 0,
    output: str | None = None,
    protocol: str = DEFAULT,
    weights: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Fréchet distance of images by a protocol beside its floors, class accuracy, PSNR, SSIM, codebook use.

    Raises:
        UserError: a checkpoint, protocol, data set or output that cannot be used.
    """
    path, folder = _output(output)
    place = pick_device(device)
    checkpoint = read_checkpoint(source)
    task = checkpoint.recipe.task
    _require_options_of(task, source, metrics, num, path, choices)
    if task == "classifier":
        return f"test accuracy {_classifier_accuracy(checkpoint, place):.2%} on the test split"
    extractor = pick_extractor(protocol, weights, place)
    require_fit(extractor, checkpoint)
    beside = [name for name in metrics if name in FEATURE_METRICS.names()]
    ground = ground_of(checkpoint, extractor, keeps=keeps_features(beside))
    if task == "tokenizer":
        tokenizer = cast(ImageTokenizer, load_model(checkpoint)[0]).to(place)
        return publish(_tokenizer_report(ground, tokenizer), path)
    for name in beside:
        require_able(name, ground.reference, num)
    pipeline = ImagePipeline(checkpoint, place)
    arm = arm_of(pipeline, pipeline.with_sampler(**choices), seed, folder)
    return publish(_generator_report(ground, arm, source, num, repeats, tuple(beside)), path)


def _require_options_of(
    task: str, source: str, metrics: Sequence[str], num: int, path: Path | None, choices: Mapping[str, object]
) -> None:
    """Raises:
    UserError: options that a checkpoint of this task does not have.
    """
    if task != "generator" and choices:
        raise UserError(f"{source} is a {task} and has no sampler; leave out {', '.join(choices)}")
    if task == "classifier" and path is not None:
        raise UserError("--output: a classifier has one number and no report; leave it out")
    if task != "classifier" and num < 2:
        raise UserError(f"--num must be at least 2, got {num}: a distance needs a covariance")
    if task == "tokenizer" and (wrong := [name for name in metrics if name not in ("fidelity", "reconstruction")]):
        raise UserError(f"--metric {wrong[0]}: {source} is a tokenizer; choose fidelity or reconstruction")


@dataclass(frozen=True)
class Ground:
    """What samples are compared with: the test images, and the distance of training images to them."""

    extractor: Extractor
    data: ImageSource
    reference: Statistics
    train: Statistics

    @property
    def test(self) -> ImageSplit:
        return self.data.split("test")

    def scored(self, samples: Statistics, of: str, **made: object) -> Scored:
        return Scored(self.extractor, samples, self.reference, of, made)

    def floor(self) -> Entry:
        """The train-vs-test floor."""
        return self.scored(self.train, "train images").distance()


def ground_of(checkpoint: Checkpoint, extractor: Extractor, keeps: bool = False) -> Ground:
    """The reference of a checkpoint's data; statistics come from the cache where they are there."""
    data = checkpoint.recipe.build_data()
    test = SplitSet(data.split("test"), f"{data.name} test images")
    train = SplitSet(data.split("train"), f"{data.name} train images", FLOOR_IMAGES)
    return Ground(
        extractor,
        data,
        cached(test, extractor, keeps, progress_bar("test images")),
        cached(train, extractor, progress=progress_bar("train images")),
    )


def _generator_report(
    ground: Ground, arm: Arm, source: str, num: int, repeats: int, metrics: tuple[str, ...]
) -> Report:
    tokenizer = arm.pipeline.generator.tokenizer
    assert isinstance(tokenizer, ImageTokenizer)
    floor, quality = None, list[Entry]()
    if not isinstance(tokenizer, PatchTokenizer):  # patches lose nothing
        restored, quality = reconstruct(tokenizer, ground)
        floor = ground.scored(restored, "tokenizer reconstructions of test images").distance()
    keeps = keeps_features(metrics)
    sampler = {"checkpoint": source, "step": arm.pipeline.checkpoint.step, **settings_of(arm.generator)}
    sets, cost = [], Cost()
    for index in range(repeats):
        one = replace(arm, seed=arm.seed + index * num)
        sets.append(score_samples(ground.extractor, one, num, keeps, cost))
    scored = replace(
        ground.scored(sets[0], "samples", seed=arm.seed, sampler=sampler), generated=_generated(ground, arm, num)
    )
    score, *spread = _over_sets([scored.distance(one) for one in sets])
    score = replace(score, of="samples")
    beside = [entry for name in metrics for entry in measure(name, scored)]
    others = [*spread, *_accuracy(scored), *beside, *quality, *cost.entries(scored, arm.generator)]
    return Report(score, ground.floor(), floor, others, notes(scored, metrics, beside))


def _generated(ground: Ground, arm: Arm, num: int) -> Generated:
    """The samples' images, read or drawn again when a metric needs some of them."""

    def images(rows: Sequence[int]) -> Tensor:
        found = {
            row: draw.images[row - draw.first]
            for draw in arm.draw(num)
            for row in rows
            if draw.first <= row < draw.first + len(draw.images)
        }
        return torch.stack([found[row] for row in rows])

    return Generated(ground.data, images, None if arm.folder is None else arm.folder.parent, progress_bar)


def _tokenizer_report(ground: Ground, tokenizer: ImageTokenizer) -> Report:
    restored, quality = reconstruct(tokenizer, ground)
    scored = ground.scored(restored, "reconstructions")
    return Report(scored.distance(), ground.floor(), others=quality, notes=notes(scored))


@dataclass
class Cost:
    """Cost of the samples, summed over batches."""

    n: int = 0
    seconds: float = 0.0
    evaluations: int = 0

    def add(self, draw: Draw) -> None:
        self.n += len(draw.images)
        self.seconds += draw.seconds
        self.evaluations += draw.evaluations

    def entries(self, scored: Scored, generator: Generator) -> list[Entry]:
        """NFE and seconds per sample, and the NFE of a head per token; entries without a reference."""
        counted = self.evaluations / self.n
        found = {
            NFE: counted,
            SCHEDULED_NFE: published_nfe(generator, counted),
            "seconds_per_sample": self.seconds / self.n,
        }
        if HEAD_NFE in scored.made["sampler"]:
            found[HEAD_NFE] = float(scored.made["sampler"][HEAD_NFE])
        return [
            Entry(name, "samples", value, self.n, **scored.made) for name, value in found.items() if value is not None
        ]


def score_samples(
    extractor: Extractor, arm: Arm, num: int, keeps: bool, cost: Cost, seen: Callable[[Draw], None] | None = None
) -> Statistics:
    """The statistics of an arm's first `num` samples, of all processes together; `seen` is called with each draw."""
    collector = Collector(extractor, keeps)
    for draw in tqdm(arm.draw(num), "samples", unit="batch", disable=None):
        collector.update(draw.images, draw.labels, draw.first)
        cost.add(draw)
        if seen is not None:
            seen(draw)
    return collector.result("samples", "samples", f"{arm.key} {num}")


def _over_sets(entries: list[Entry]) -> list[Entry]:
    """The score, and the interval over independent sets of samples if there are several."""
    if len(entries) == 1:
        return entries
    found = over_sets([entry.value for entry in entries])
    facts = {"sets": len(entries), "values": [entry.value for entry in entries], "95%": (found.low, found.high)}
    ends = [
        replace(entries[0], name=f"{entries[0].name} {end} of 95 %, {len(entries)} sets", of="samples", value=value)
        for end, value in (("low", found.low), ("high", found.high))
    ]
    return [replace(entries[0], value=found.mean, standard_error=found.standard_error, facts=facts), *ends]


def _accuracy(scored: Scored) -> list[Entry]:
    """Share of samples, and of reference images, that the network puts in the class of their label."""
    name = f"class_accuracy[{scored.protocol}]"
    pairs = [("samples", scored.samples, scored.made), (scored.reference.name, scored.reference, {})]
    return [
        Entry(name, of, one.accuracy, int(one.n_labelled.sum()), **made)
        for of, one, made in pairs
        if one.accuracy is not None and scored.samples.accuracy is not None
    ]


class Restored(SplitSet):
    """The test images through a tokenizer, measured as they pass."""

    def __init__(self, tokenizer: ImageTokenizer, split: ImageSplit) -> None:
        super().__init__(split, "tokenizer reconstructions")
        self.tokenizer = tokenizer
        self.device = device_of(tokenizer)
        self.signal = Reconstruction()
        self.use = CodebookUse(tokenizer.vocab_size)

    def read(self, rows: range) -> list[Tensor]:
        images = self.split.__getitems__(rows)[0]
        with torch.no_grad():
            tokens = self.tokenizer.encode(to_float(images).to(self.device))
            restored = to_uint8(self.tokenizer.decode(tokens)).cpu()
        if self.tokenizer.has_discrete_tokens:
            self.use.update(tokens)
        self.signal.update(restored, images)
        return list(restored)

    def digest(self) -> str:
        return f"{super().digest()} {self.tokenizer.fingerprint()}"


def reconstruct(tokenizer: ImageTokenizer, ground: Ground) -> tuple[Statistics, list[Entry]]:
    """The test images through the tokenizer: their statistics, and PSNR, SSIM and use of the codebook if it has one."""
    images = Restored(tokenizer, ground.test)
    found = collect(images, ground.extractor, progress=progress_bar("reconstructions"))
    scores = images.signal.scores()
    if tokenizer.has_discrete_tokens:
        scores |= {"codes_used": images.use.share_used, "code_perplexity": images.use.perplexity}
    return found, [Entry(name, "tokenizer reconstructions", value, len(images)) for name, value in scores.items()]


def _output(output: str | None) -> tuple[Path | None, Path | None]:
    """The report's file, and the folder for samples if a folder was given."""
    if output is None or Path(output).suffix == ".json":
        return (check_writable(output, (".json",)) if output else None), None
    folder = local_path(output)
    if folder.suffix or folder.is_file():
        raise UserError(f"cannot write {output!r}: give a folder or a .json file")
    require_writable(folder, output)
    require_no_bench(folder / "report.json")
    return folder / "report.json", folder / "samples"


@torch.no_grad()
def _classifier_accuracy(checkpoint: Checkpoint, device: torch.device) -> float:
    network = load_model(checkpoint)[0].to(device)
    test = checkpoint.recipe.build_data().split("test")
    right = 0
    for images, labels in in_order(test, BATCH):
        right += int((network(to_float(images.to(device))).argmax(1).cpu() == labels).sum())
    return right / len(test)
