"""`maskgen evaluate`: a first score of a checkpoint, with the floors it has to be read against."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio
from tqdm import tqdm

from maskgen.checkpoint import Checkpoint, load_model, read_checkpoint
from maskgen.data.captions import CaptionTable, embedded
from maskgen.data.images import ImageSplit
from maskgen.data.loader import in_order
from maskgen.devices import pick_device
from maskgen.errors import UserError
from maskgen.eval.features import FeatureExtractor, to_float, to_uint8
from maskgen.eval.fidelity import CodebookUse, ImageResult, ImageScore, compare
from maskgen.eval.report import Entry, Report, publish
from maskgen.predictions import NULL
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.patches import PatchTokenizer

from .image_pipeline import Given, ImagePipeline
from .pictures import check_writable
from .pipeline import settings_of

BATCH = 250
Images = Iterable[tuple[Tensor, Tensor]]
"""Batches of images (B, C, H, W) uint8 and labels (B,)."""


def run(
    source: str,
    /,
    *,
    num: int = 10_000,
    seed: int = 0,
    output: str | None = None,
    extractor: str = "fashion-classifier",
    device: str = "auto",
    **choices: Any,
) -> str:
    """Score a generator, a tokenizer or a classifier; the table it prints.

    Raises:
        UserError: a checkpoint, extractor, data set or output that cannot be used.
    """
    path = check_writable(output, (".json",)) if output else None
    place = pick_device(device)
    checkpoint = read_checkpoint(source)
    if checkpoint.recipe.task != "generator" and choices:
        raise UserError(f"{source} is a {checkpoint.recipe.task}: it has no sampler to give {', '.join(choices)} to")
    if checkpoint.recipe.task == "classifier":
        if path is not None:
            raise UserError("--output: a classifier has one number and no report; leave it out")
        return f"test accuracy {_classifier_accuracy(checkpoint, place):.2%} on the test split"
    report = _report(checkpoint, source, num, seed, _extractor(extractor, checkpoint, place), place, choices)
    return publish(report, path)


def _report(
    checkpoint: Checkpoint,
    source: str,
    num: int,
    seed: int,
    extractor: FeatureExtractor,
    device: torch.device,
    choices: dict[str, Any],
) -> Report:
    if num < 2:
        raise UserError(f"--num must be at least 2, got {num}: a distance needs a covariance")
    if checkpoint.recipe.task == "generator":
        pipeline = ImagePipeline(checkpoint, device)
        generator = pipeline.with_sampler(**choices)  # a wrong choice is known before anything is scored
    data = checkpoint.recipe.build_data()
    test, train = data.split("test"), data.split("train")
    reference = _score(extractor, len(data.classes), _split(test, "test images"))
    about: dict[str, Any] = {
        "extractor": extractor.name,
        "reference": f"{data.name} test images",
        "n_reference": reference.n,
    }

    def distance(images: ImageResult, of: str, **more: Any) -> Entry:
        return Entry(extractor.score_name, of, compare(images, reference), images.n, **about, **more)

    floor = distance(_score(extractor, len(data.classes), _split(train, "train images", 10_000)), "train images")
    if checkpoint.recipe.task == "tokenizer":
        tokenizer = cast(ImageTokenizer, load_model(checkpoint)[0]).to(device)
        restored, others = _reconstruct(tokenizer, test, extractor, len(data.classes), device)
        return Report(distance(restored, "reconstructions"), floor, others=others)
    coder, others = cast(ImageTokenizer, pipeline.generator.tokenizer), list[Entry]()
    rebuilt: ImageResult | None = None
    if not isinstance(coder, PatchTokenizer):  # patches lose nothing
        rebuilt, others = _reconstruct(coder, test, extractor, len(data.classes), device)
    clock = _Stopwatch()
    labels = pipeline.labels(None, num)
    captions = None
    if checkpoint.recipe.captions is not None:
        table, (of_test, _) = embedded([test, train], checkpoint.recipe.captions, device=device)
        captions = replace(table, numbers=of_test)
    batches = clock.timed(_samples(pipeline, generator, num, labels, seed, captions))
    samples = _score(extractor, len(data.classes), tqdm(batches, "samples", -(-num // BATCH), disable=None))
    settings = {"checkpoint": source, "step": checkpoint.step, **settings_of(generator)}
    made: dict[str, Any] = {"seed": seed, "sampler": settings}
    if samples.accuracy is not None:
        others.insert(0, Entry(f"class_accuracy[{extractor.name}]", "samples", samples.accuracy, num, **made))
        others.insert(
            1, Entry(f"class_accuracy[{extractor.name}]", "test images", reference.accuracy or 0.0, reference.n)
        )
    others.append(Entry("seconds_per_sample", "samples", clock.seconds / num, num, **made))
    return Report(
        distance(samples, "samples", **made),
        floor,
        None if rebuilt is None else distance(rebuilt, "tokenizer reconstructions of test images"),
        others,
    )


@dataclass
class _Stopwatch:
    """Seconds spent in making batches, not in looking at them."""

    seconds: float = 0.0

    def timed(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def _samples(
    pipeline: ImagePipeline,
    generator: Any,
    num: int,
    labels: Tensor | None,
    seed: int,
    captions: CaptionTable | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for _, images in pipeline.draw(generator, num, labels, seed, BATCH, given=Given(captions)):
        rows = slice(start, start + len(images))
        yield images, labels[rows] if labels is not None else torch.full((len(images),), NULL)
        start = rows.stop


def _split(split: ImageSplit, name: str, most: int | None = None) -> Images:
    """The first images of a split, with a progress bar."""
    n = min(len(split), most or len(split))
    rows = range(0, n, BATCH)
    for first in tqdm(rows, name, disable=None):
        yield split.__getitems__(range(first, min(first + BATCH, n)))


def _score(extractor: FeatureExtractor, n_classes: int, images: Images) -> ImageResult:
    score = ImageScore(extractor, n_classes)
    for batch, labels in images:
        score.update(batch, labels)
    return score.result()


@torch.no_grad()
def _reconstruct(
    tokenizer: ImageTokenizer, test: ImageSplit, extractor: FeatureExtractor, n_classes: int, device: torch.device
) -> tuple[ImageResult, list[Entry]]:
    """The test images through the tokenizer: features, PSNR and use of the codebook."""
    score, signal = ImageScore(extractor, n_classes), PeakSignalNoiseRatio(data_range=1.0).set_dtype(torch.float64)
    use = CodebookUse(tokenizer.vocab_size)
    for images, labels in _split(test, "reconstructions"):
        tokens = tokenizer.encode(to_float(images).to(device))
        restored = to_uint8(tokenizer.decode(tokens)).cpu()
        if not tokenizer.is_continuous:
            use.update(tokens)
        score.update(restored, labels)
        signal.update(to_float(restored).double(), to_float(images).double())
    n, of = len(test), "tokenizer reconstructions"
    entries = [Entry("psnr", of, float(signal.compute()), n)]
    if not tokenizer.is_continuous:
        entries += [Entry("codes_used", of, use.share_used, n), Entry("code_perplexity", of, use.perplexity, n)]
    return score.result(), entries


def _extractor(name: str, checkpoint: Checkpoint, device: torch.device) -> FeatureExtractor:
    judge = read_checkpoint(name)
    if judge.recipe.task != "classifier":
        raise UserError(f"--extractor {name} is a {judge.recipe.task}; it must be a classifier's checkpoint")
    if judge.image_shape != checkpoint.image_shape or (checkpoint.classes and judge.classes != checkpoint.classes):
        raise UserError(
            f"--extractor {name} judges {judge.image_shape} images of {len(judge.classes)} classes, the checkpoint "
            f"makes {checkpoint.image_shape} of {len(checkpoint.classes)}: train a classifier recipe on the same data"
        )
    return FeatureExtractor(Path(name).name, cast(Any, load_model(judge)[0]), device)


@torch.no_grad()
def _classifier_accuracy(checkpoint: Checkpoint, device: torch.device) -> float:
    network = load_model(checkpoint)[0].to(device)
    test = checkpoint.recipe.build_data().split("test")
    right = 0
    for images, labels in in_order(test, BATCH):
        right += int((network(to_float(images.to(device))).argmax(1).cpu() == labels).sum())
    return right / len(test)
