"""Samples for evaluation: image i from seed i, in pieces that do not depend on the number of processes, stored on disk
if there is a folder, so that an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL
from maskgen.core.devices import my_share
from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.core.predictions import NULL
from maskgen.core.version import __version__
from maskgen.data.image.captions import CaptionTable, embedded
from maskgen.evaluation.protocols.features import packages
from maskgen.pipelines.arguments import slices
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.image import Conditioning, ImagePipeline

from .nfe import CountedDenoiser

SHARD = 100
"""Images drawn, kept and scored together."""


@dataclass(frozen=True)
class Draw:
    """A piece of the samples and its cost.

    Attributes:
        first: seed of its first image; the others follow.
        images: (B, C, H, W) uint8.
        labels: (B,) int64, `NULL` without classes.
        seconds: wall time of the sampling.
        evaluations: NFE, summed over rows.
    """

    first: int
    images: Tensor
    labels: Tensor
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Arm:
    """A checkpoint with one sampler.

    Attributes:
        pipeline, generator: of the checkpoint; how it is decoded.
        seed: of the first image; the others follow.
        folder: where samples are stored, None for nowhere.
        captions: conditions of the images, used in turn.
    """

    pipeline: ImagePipeline
    generator: Generator
    seed: int = 0
    folder: Path | None = None
    captions: CaptionTable | None = None

    def settings(self) -> dict[str, object]:
        """Everything that determines the images."""
        info = self.pipeline.checkpoint.info
        tokenizer = self.pipeline.generator.tokenizer
        return {
            "maskgen": __version__,
            **packages(),
            "device": self.generator.device.type,
            "checkpoint": info["files"][MODEL]["sha256"],
            "tokenizer": tokenizer.fingerprint(),
            "captions": None if self.captions is None else self.captions.encoder,
            "seed": self.seed,
            **{key: str(value) for key, value in settings_of(self.generator).items()},
        }

    @property
    def key(self) -> str:
        """Hash of the settings: samples of other weights or of another sampler have another folder."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]

    def draw(self, num: int) -> Iterator[Draw]:
        """This process's part of the first `num` samples, in order.

        Raises:
            UserError: num below 1, or samples of other settings in the folder.
        """
        pieces = my_share(list(slices(num, SHARD)))
        home = self._home() if self.folder is not None else None
        for piece in pieces:
            file = None if home is None else home / f"images-{piece.start:08d}-{piece.stop:08d}.npz"
            kept = _read(file) if file is not None and file.is_file() else None
            drawn = kept or self._draw(range(piece.start, piece.stop))
            if file is not None and kept is None:
                _write(file, drawn)
            yield drawn

    def _home(self) -> Path:
        assert self.folder is not None
        home, settings = self.folder / self.key, self.settings()
        file = home / "settings.json"
        if file.is_file() and json.loads(file.read_text("utf-8")) != settings:
            raise UserError(f"{home} holds samples of other settings; choose another --output")
        if not file.is_file():
            with atomic(file) as out:
                out.write(json.dumps(settings, indent=1).encode())
        return home

    def _draw(self, rows: range) -> Draw:
        counted = CountedDenoiser(self.generator.denoiser)
        labels = self.pipeline.labels(None, rows.stop)
        chosen = None if labels is None else labels[rows.start :]
        began = time.perf_counter()
        parts = self.pipeline.draw(
            replace(self.generator, denoiser=counted),
            len(rows),
            chosen,
            self.seed + rows.start,
            len(rows),
            given=Conditioning(self._captions(rows)),
        )
        images = torch.cat([part.images for part in parts])
        seconds = time.perf_counter() - began
        known = torch.full((len(rows),), NULL) if chosen is None else chosen
        return Draw(rows.start, images, known, seconds, counted.n_rows)

    def _captions(self, rows: range) -> CaptionTable | None:
        """Captions of the rows, starting with the first row's."""
        if self.captions is None:
            return None
        index = torch.arange(rows.start, rows.stop) % len(self.captions)
        return replace(self.captions, numbers=index if self.captions.numbers is None else self.captions.numbers[index])


def arm_of(pipeline: ImagePipeline, generator: Generator, seed: int = 0, folder: Path | None = None) -> Arm:
    """An arm; a checkpoint trained with captions is conditioned on those of the test images."""
    recipe, captions = pipeline.checkpoint.recipe, None
    if recipe.captions is not None:
        data = recipe.build_data()
        splits = [data.split("test"), data.split("train")]
        table, (of_test, _) = embedded(splits, recipe.captions, device=generator.device)
        captions = replace(table, numbers=of_test)
    return Arm(pipeline, generator, seed, folder, captions)


def _write(file: Path, draw: Draw) -> None:
    arrays = {"images": draw.images.permute(0, 2, 3, 1).contiguous().numpy(), "labels": draw.labels.numpy()}
    cost = {"seconds": np.array(draw.seconds), "evaluations": np.array(draw.evaluations)}
    with atomic(file) as out:
        np.savez(out, allow_pickle=False, **arrays, **cost)


def _read(file: Path) -> Draw | None:
    """A stored piece; None if it is damaged or incomplete, and must be sampled again."""
    start, stop = (int(part) for part in file.stem.split("-")[1:])
    try:
        with np.load(file, allow_pickle=False) as stored:
            images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous()
            labels = torch.from_numpy(stored["labels"])
            seconds, evaluations = float(stored["seconds"]), int(stored["evaluations"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if not len(images) == len(labels) == stop - start:
        return None
    return Draw(start, images, labels, seconds, evaluations)
