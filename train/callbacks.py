"""Progress, metrics and previews of a training run."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.core.files import atomic
from maskgen.core.pixels import to_uint8
from maskgen.data.image.captions import CaptionTable
from maskgen.data.image.grid import grid
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.joint_output import output_of
from maskgen.recipes.budget import TrainSettings
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import RowTokenizer

from .trackers import open_trackers

LINE_EVERY = 30.0
"""Seconds between two lines of progress where no terminal shows a bar."""


class Progress:
    """A bar on a terminal; in a log file, a line every `LINE_EVERY` seconds."""

    def __init__(self, first: int, steps: int, *, is_shown: bool) -> None:
        is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=first, unit="step", dynamic_ncols=True, disable=not (is_shown and is_terminal)
        )
        self._has_lines = is_shown and not is_terminal
        self._step, self._first, self._steps, self._shown = first, first, steps, ""
        self._start = self._last = time.monotonic()

    def advance(self) -> None:
        self.bar.update()
        self._step += 1
        now = time.monotonic()
        if self._has_lines and now - self._last >= LINE_EVERY:
            self._last = now
            left = (now - self._start) / (self._step - self._first) * (self._steps - self._step)
            print(
                f"step {self._step}/{self._steps}{self._shown}, {left / 60:.0f} min left", file=sys.stderr, flush=True
            )

    def show(self, values: Mapping[str, str]) -> None:
        """Values beside the bar, or in the next line."""
        self.bar.set_postfix(values)
        self._shown = "".join(f", {key} {value}" for key, value in values.items())

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.write(text, file=sys.stderr)


class Log:
    """Lines of metrics.jsonl, the trackers of the recipe, and the progress. Silent off the main process."""

    def __init__(self, directory: Path, first: int, settings: TrainSettings, *, is_main: bool) -> None:
        self.file = directory / "metrics.jsonl" if is_main else None
        self.progress = Progress(first, settings.steps, is_shown=is_main)
        self.trackers = open_trackers(directory, first, settings, self.say) if is_main else []

    def advance(self) -> None:
        self.progress.advance()

    def metrics(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        """Record means; the progress shows loss and samples a second."""
        if prefix == "train":
            self.progress.show({key: f"{values[key]:.4g}" for key in ("loss", "samples/s") if key in values})
        if self.file is None:
            return
        line = {"step": step, **{f"{prefix}/{key}": value for key, value in values.items()}}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self.trackers:
            tracker.log({f"{prefix}/{key}": value for key, value in values.items()}, step=step)

    def say(self, text: str) -> None:
        """A line above the progress."""
        if self.file is not None:
            self.progress.say(text)

    def close(self) -> None:
        self.progress.bar.close()
        for tracker in self.trackers:
            tracker.finish()


def drop_after(file: Path, step: int) -> None:
    """Remove lines of later steps, and damaged ones, from metrics.jsonl: a resumed run writes them again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short by a kill, or damaged
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
    with atomic(file) as out:
        out.write(b"".join(kept))


def describe(values: Mapping[str, float], baseline: float | None) -> str:
    """The means of a validation in a line or two, the cross-entropy beside the uniform baseline."""
    if "cross_entropy" in values and baseline is not None:
        buckets = [key.split("/")[1] for key in values if key.startswith("cross_entropy/")]
        parts = [f"{name} {values[f'cross_entropy/{name}']:.2f} ({values[f'accuracy/{name}']:.0%})" for name in buckets]
        by_share = f"; by share masked: {', '.join(parts)}" if parts else ""
        return (
            f"loss {values['loss']:.4f}, cross-entropy {values['cross_entropy']:.3f} (uniform baseline "
            f"{baseline:.3f}), accuracy {values['accuracy']:.1%}{by_share}"
        )
    if "squared_error" in values and "penalty" in values:  # of pixels, not of a target
        return f"PSNR {-10 * math.log10(max(values['squared_error'], 1e-12)):.2f} dB, loss {values['loss']:.5f}"
    return ", ".join(f"{key} {value:.4g}" for key, value in values.items())


def preview_texts(path: Path, generator: Generator) -> None:
    """Four texts, the same seeds at every preview."""
    texts = generator.texts(generator.tokens(range(4)))
    with atomic(path) as file:
        file.write("\n\n----\n\n".join(texts).encode())


def preview_rows(path: Path, generator: Generator) -> None:
    """Sixteen rows of several streams, the same seeds at every preview: a sheet, and captions and labels beside it."""
    tokenizer, seeds = generator.tokenizer, range(16)
    assert isinstance(tokenizer, RowTokenizer)
    tokens = generator.tokens(seeds)
    with torch.no_grad():
        output = output_of(tokenizer.decode(tokens), tokens, seeds, n_map_classes=tokenizer.n_map_classes)
    output.save(path.with_suffix(".png"))
    if output.captions is not None or output.labels is not None:
        output.save(path.with_suffix(".jsonl"))


def preview_samples(path: Path, generator: Generator, n_classes: int, captions: CaptionTable | None = None) -> None:
    """A grid of samples, one column per class or caption, with the same seeds at every preview."""
    n_columns = min((n_classes or 8) if captions is None else len(captions), 10)
    seeds = range(4 * n_columns)
    column = torch.arange(len(seeds)) % n_columns
    shown = None if captions is None else captions.rows(column)
    images = generator.images(seeds, column if n_classes else None, captions=shown)
    _save(path, images.float() / 255, n_columns)


@torch.no_grad()
def preview_reconstructions(path: Path, tokenizer: ImageTokenizer, images: Tensor) -> None:
    """Rows of images (B, C, H, W) in [0, 1], each above its reconstruction."""
    restored = tokenizer.decode(tokenizer.encode(images))
    rows = [row for pair in zip(images.split(10), restored.split(10), strict=True) for row in pair]
    _save(path, torch.cat(rows).cpu(), 10)


def _save(path: Path, images: Tensor, n_columns: int) -> None:
    with atomic(path) as file:
        grid(to_uint8(images), n_columns).save(file, "PNG")
