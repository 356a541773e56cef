"""`maskgen probe`: how well a network's features predict the classes of images, beside raw pixels."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import write_json
from maskgen.core.pixels import to_float
from maskgen.core.version import __version__
from maskgen.data.base import ImageSplit
from maskgen.data.cache import default_cache_dir
from maskgen.data.image.sets import SplitSet
from maskgen.evaluation.probes.classifiers import (
    NEIGHBOURS,
    SETTINGS,
    TEMPERATURE,
    Accuracy,
    Labelled,
    linear_probe,
    nearest_neighbours,
    share_of_labels,
)
from maskgen.evaluation.probes.finetune import Tuning, finetuned
from maskgen.evaluation.probes.representation import BATCH, PIXELS, Encoder, digest, features_of
from maskgen.evaluation.probes.variance import VarianceSubspace, within
from maskgen.evaluation.protocols.features import packages
from maskgen.evaluation.report import Entry, Made, Report, publish

from .labelled import labelled_split, open_data
from .metric import METRICS, metric
from .pictures import check_writable
from .probe_features import encoder_of
from .progress import progress_bar
from .text_probe import TEXT_METHODS, text_report

Method = Literal["linear", "knn", "finetune", "retrieval", "inversion"]
BASELINE_FORMAT = 1

log = logging.getLogger(__name__)


def run(
    source: str,
    /,
    *,
    data: str | None = None,
    methods: Sequence[Method] = (),
    num: int | None = None,
    label_share: float | Sequence[float] = 1.0,
    has_baseline: bool = True,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Probe the network of a checkpoint by `methods`; the table it prints.

    Args:
        source, methods, output, device: see `maskgen probe`.
        data: a data set by name, as YAML, or a folder of images; default the one of its training.
        num: maximum number of training images.
        label_share: share of the training images of each class that is used; several for a score of each.
        has_baseline: whether raw pixels, or counts of a text's tokens, are probed as well.
        choices: `block`, `cells` (see `encoder_of`), `subspace` (see `Ground`), `epochs`, `minutes`, `lr` of tuning.

    Raises:
        UserError: a checkpoint, data set, option or output that cannot be used.
    """
    path = check_writable(output, (".json",)) if output else None
    checkpoint = read_checkpoint(source)
    place = {key: choices.pop(key) for key in ("block", "cells", "subspace") if key in choices}
    chosen, settings = tuple(dict.fromkeys(methods)), _tuning(methods, seed, choices)
    if checkpoint.recipe.kind == "text" and checkpoint.recipe.task == "generator":
        return publish(text_report(checkpoint, source, chosen, seed, pick_device(device), has_baseline), path)
    chosen = _of_images(chosen or ("linear", "knn"), source)
    shares = (label_share,) if isinstance(label_share, int | float) else label_share
    grounds = [ground_of(checkpoint, data, num, share) for share in dict.fromkeys(shares)]
    encoders = _encoders(checkpoint, source, grounds[0], pick_device(device), **place)
    entries = list(_entries(grounds, encoders[: 1 + has_baseline], chosen, settings, source))
    return publish(Report(entries[0], others=entries[1:], notes=grounds[0].notes(checkpoint)), path)


def _encoders(
    checkpoint: Checkpoint,
    source: str,
    ground: Ground,
    device: torch.device,
    *,
    block: int = 0,
    cells: int = 1,
    subspace: str | None = None,
) -> list[Encoder]:
    """The checkpoint's features and raw pixels, of images in a subspace if one is given."""
    encoders = [encoder_of(checkpoint, source, block, device, cells), PIXELS]
    return encoders if subspace is None else ground.within(subspace, encoders)


def _entries(
    grounds: Sequence[Ground], encoders: Sequence[Encoder], methods: Sequence[Method], settings: Tuning, source: str
) -> Iterator[Entry]:
    """Scores of the checkpoint's features, then of the baseline, which cannot be fine-tuned."""
    for ground in grounds:
        made: Made = {"sampler": {"checkpoint": source, "step": ground.step}}
        for method in methods:
            yield ground.entry(ground.probed(method, encoders[0], settings), encoders[0], **made)
    for encoder in encoders[1:]:
        for method in (one for one in methods if one != "finetune"):
            for ground in grounds:
                yield ground.entry(ground.probed(method, encoder, settings), encoder)


def _of_images(methods: tuple[Method, ...], source: str) -> tuple[Method, ...]:
    """The methods, if all are for images.

    Raises:
        UserError: one is not.
    """
    if wrong := [one for one in methods if one in TEXT_METHODS]:
        raise UserError(
            f"--method {wrong[0]} is for text generators, {source} is of images; use linear, knn or finetune"
        )
    return methods


@METRICS.register("probe")
@metric("image")
def evaluate(source: str, /, *, seed: int = 0, output: str | None = None, device: str = "auto") -> str:
    """Linear probe and nearest neighbours of the network's features, as `maskgen probe` does by default."""
    return run(source, seed=seed, output=output, device=device)


def _tuning(methods: Sequence[Method], seed: int, choices: Mapping[str, Any]) -> Tuning:
    """The settings of fine-tuning.

    Raises:
        UserError: some that are impossible, or without fine-tuning.
    """
    given = {key: value for key, value in choices.items() if value is not None}
    if given and "finetune" not in methods:
        raise UserError(f"--{next(iter(given))} is of fine-tuning: add --method finetune, or leave it out")
    try:
        return Tuning(seed=seed, **given)
    except ValueError as error:
        raise UserError(f"fine-tuning: {error}") from None


@dataclass(frozen=True)
class Found:
    """The score of a method, and facts about how it came about."""

    name: str
    accuracy: Accuracy
    facts: Mapping[str, object]


def _stored(file: Path) -> Found | None:
    """What is kept in a file; None if there is no such file, or a damaged one."""
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        accuracy = Accuracy(float(stored["accuracy"]["value"]), int(stored["accuracy"]["n"]))
        return Found(str(stored["name"]), accuracy, dict(stored["facts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read and is computed again: %s", file, error)
        return None


@dataclass(frozen=True)
class Chosen:
    """Some rows of a split, read many at a time."""

    split: ImageSplit
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,) int64."""
        return self.split.__getitems__(self.rows[torch.as_tensor(indices)].tolist())


@dataclass(frozen=True)
class Ground:
    """Labelled images to fit on and to score on; of `train`, the labels of `rows` are used, a `share` of each class.

    `step` is that of the checkpoint.
    """

    train: SplitSet
    test: SplitSet
    rows: Tensor
    n_classes: int
    share: float = 1.0
    step: int = 0

    def within(self, spec: str, encoders: Sequence[Encoder]) -> list[Encoder]:
        """Encoders of images projected to directions of the training images' variance.

        Args:
            spec: `top:0.9` or `bottom:0.1`, the principal directions with the first or last share of the variance.
            encoders: of whole images.

        Raises:
            UserError: no such end or share.
        """
        end, _, share = spec.partition(":")
        try:
            if end not in ("top", "bottom"):
                raise ValueError("it is top:SHARE or bottom:SHARE")
            images = torch.cat([batch for _, batch in self.train.batches(BATCH, range(len(self.train)))])
            found = VarianceSubspace.fit(to_float(images), "top" if end == "top" else "bottom", float(share))
        except ValueError as error:
            raise UserError(f"--subspace {spec}: {error}") from None
        return [within(one, found, self.train.digest()) for one in encoders]

    def _labelled(self, encoder: Encoder) -> tuple[Labelled, Labelled]:
        """Features of the training and the test images."""
        sides = []
        for images in (self.train, self.test):
            found = features_of(images, encoder, progress_bar(images.name))
            assert images.labels is not None
            sides.append(Labelled(found, images.labels))
        return sides[0].rows(self.rows), sides[1]

    def probed(self, method: Method, encoder: Encoder, tuning: Tuning) -> Found:
        """What a method finds; that of raw pixels is kept on disk, as it is the same for every network."""
        if method == "finetune":
            train, test = Chosen(self.train.split, self.train.rows[self.rows]), Chosen(self.test.split, self.test.rows)
            accuracy = finetuned(encoder, train, test, self.n_classes, tuning, progress_bar("fine-tuning"))
            return Found(f"finetune[{encoder.pooling},bn,adamw,{tuning.length}]", accuracy, asdict(tuning))
        if encoder is not PIXELS:
            return self._probed(method, encoder)
        facts = {"images": [self.train.digest(), self.test.digest()], "rows": self.rows.tolist(), "method": method}
        about = {"format": BASELINE_FORMAT, "maskgen": __version__, "packages": packages(), "settings": SETTINGS}
        file = default_cache_dir() / f"baseline-{digest({**facts, **about})}.json"
        found = _stored(file)
        if found is None:
            found = self._probed(method, encoder)
            write_json(file, asdict(found))
        return found

    def _probed(self, method: Method, encoder: Encoder) -> Found:
        train, test = self._labelled(encoder)
        if method == "knn":
            name = f"knn[{encoder.pooling},cosine,k={NEIGHBOURS},T={TEMPERATURE}]"
            return Found(name, nearest_neighbours(train, test), {})
        probe = linear_probe(train, test)
        return Found(
            f"linear_probe[{encoder.pooling},bn,lbfgs]",
            probe.accuracy,
            {"l2": probe.strength, "has_converged": probe.has_converged},
        )

    def entry(self, found: Found, encoder: Encoder, **made: Unpack[Made]) -> Entry:
        """The number in a report."""
        labels = "" if self.share == 1 else f",{self.share:.3g} of labels]"
        return Entry(
            found.name.removesuffix("]") + labels if labels else found.name,
            encoder.name,
            found.accuracy.value,
            found.accuracy.n,
            reference=self.train.name,
            reference_digest=self.train.digest(),
            n_reference=len(self.rows),
            standard_error=found.accuracy.standard_error,
            facts=found.facts,
            **made,
        )

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """Limits of the numbers, to be printed below them."""
        objective = checkpoint.recipe.objective
        if checkpoint.classes and isinstance(objective, dict) and objective.get("label_dropout") == 0:
            return ['"no class", which features are made with, was never trained (objective.label_dropout 0)']
        return []


def ground_of(checkpoint: Checkpoint, data: str | None, num: int | None, label_share: float) -> Ground:
    """The images of a data set, the checkpoint's own by default.

    Raises:
        UserError: unknown, of another shape, without labels, or with a single one that is used.
    """
    source = checkpoint.recipe.build_data() if data is None else open_data(data, checkpoint.image_shape)
    if source.image_shape != checkpoint.image_shape:
        raise UserError(
            f"--data {data or source.name} has images {source.image_shape}, the checkpoint takes "
            f"{checkpoint.image_shape}; choose a data set of that shape, or a folder, whose images are brought to it"
        )
    train, test = labelled_split(source, "train", num), labelled_split(source, "test", None)
    assert train.labels is not None
    try:
        rows = share_of_labels(train.labels, label_share)
    except ValueError as error:
        raise UserError(f"--label-share: {error}") from None
    if len(rows) < 2:
        raise UserError(f"--label-share {label_share:g} leaves {len(rows)} training image; a probe needs at least 2")
    return Ground(train, test, rows, len(source.classes), label_share, checkpoint.step)
