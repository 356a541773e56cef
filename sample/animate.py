"""An animation of the unmasking."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.files import atomic
from maskgen.data.image.grid import grid
from maskgen.pipelines.partial import decode_partial
from maskgen.processes import put_masks
from maskgen.tokenizers import ImageTokenizer

MAX_SAMPLES = 40


class Recorder:
    """Stores the tokens of the first batch after each step.

    Args:
        tokenizer: of the tokens.
        is_field: whether a Gaussian process is sampled, whose steps give estimates of x_0.
    """

    def __init__(self, tokenizer: ImageTokenizer, is_field: bool = False) -> None:
        self.tokenizer, self.is_field = tokenizer, is_field
        self.steps: list[Tensor] = []
        self.is_over = False

    def add(self, x_t: Tensor, done: int) -> None:
        """Store x_t, or the estimate of x_0, after `done` steps; steps of later batches are dropped."""
        self.is_over |= done <= len(self.steps)  # the first batch may end early, and a later one take more steps
        if not self.is_over:
            self.steps.append(x_t[:MAX_SAMPLES].clone())

    def frames(self) -> list[Tensor]:
        """(N, C, H, W) uint8 for each step, after one of all [MASK]; [MASK] is a grey patch. Empty without a step."""
        if not self.steps:
            return []
        if self.is_field:
            return [decode_partial(self.tokenizer, x_0, is_field=True) for x_0 in self.steps]
        everywhere = torch.ones(self.steps[0].shape[:2], dtype=torch.bool, device=self.steps[0].device)
        first = put_masks(self.steps[0], everywhere, self.tokenizer.vocab_size)
        return [decode_partial(self.tokenizer, x_t) for x_t in (first, *self.steps)]


def write_animation(
    path: Path, recorder: Recorder, pixels: Tensor, n_columns: int = 0, milliseconds: int = 150
) -> None:
    """Write a looping GIF, or an animated PNG by the ending; the last frame stays for two seconds.

    Args:
        path: `.gif` or `.png`.
        recorder: the steps.
        pixels: (N, C, H, W) uint8, the finished samples, shown alone if there was no step.
        n_columns: images in a row; 0 makes the sheet as square as possible.
        milliseconds: that a frame is shown.
    """
    shown = recorder.frames() or [pixels[:MAX_SAMPLES]]
    frames: list[Image.Image] = [grid(frame, n_columns) for frame in shown]
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    kind = "PNG" if path.suffix == ".png" else "GIF"
    with atomic(path) as file:
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0)
