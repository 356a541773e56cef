"""What a run shows and writes while it trains: progress, metrics, preview pictures."""

from __future__ import annotations

import contextlib
import json
import math
import sys
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
from maskgen.recipes.budget import TrainSettings
from maskgen.tokenizers import ImageTokenizer

from .trackers import open_trackers


class Log:
    """Lines of metrics.jsonl, the trackers of the recipe, and the progress bar. Silent off the main process."""

    def __init__(self, directory: Path, first: int, settings: TrainSettings, *, is_main: bool) -> None:
        self.file = directory / "metrics.jsonl" if is_main else None
        steps = settings.steps
        self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, disable=not is_main)
        self.trackers = open_trackers(directory, first, settings, self.say) if is_main else []

    def advance(self) -> None:
        self.bar.update()

    def metrics(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        """Record means; the bar shows loss and samples a second."""
        shown = {key: f"{values[key]:.4g}" for key in ("loss", "samples/s") if key in values}
        if prefix == "train":
            self.bar.set_postfix(shown)
        if self.file is None:
            return
        line = {"step": step, **{f"{prefix}/{key}": value for key, value in values.items()}}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self.trackers:
            tracker.log({f"{prefix}/{key}": value for key, value in values.items()}, step=step)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.file is not None:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.finish()


def drop_after(file: Path, step: int) -> None:
    """Cut lines of a later step from metrics.jsonl: a resumed run writes them again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with atomic(file) as out:
        out.write("".join(kept).encode())


def describe(values: Mapping[str, float], baseline: float | None) -> str:
    """A validation's means in a line or two, the cross-entropy beside that of knowing nothing."""
    if "cross_entropy" in values and baseline is not None:
        buckets = [key.split("/")[1] for key in values if key.startswith("cross_entropy/")]
        parts = [f"{name} {values[f'cross_entropy/{name}']:.2f} ({values[f'accuracy/{name}']:.0%})" for name in buckets]
        by_share = f"; by share masked: {', '.join(parts)}" if parts else ""
        return (
            f"loss {values['loss']:.4f}, cross-entropy {values['cross_entropy']:.3f} (knowing nothing: ln V = "
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


def preview_samples(path: Path, generator: Generator, n_classes: int, captions: CaptionTable | None = None) -> None:
    """A grid of samples, a column a class or caption, the same seeds at every preview."""
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
