"""An animation of the unmasking."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.files import atomic
from maskgen.core.pixels import to_uint8
from maskgen.data.image.grid import grid
from maskgen.processes import is_mask, put_masks
from maskgen.tokenizers import ImageTokenizer

MAX_SAMPLES = 40
MASK_GREY = 128


class Recorder:
    """Keeps the tokens of the first batch after each step; `is_field` if a Gaussian process is followed."""

    def __init__(self, tokenizer: ImageTokenizer, is_field: bool = False) -> None:
        self.tokenizer, self.is_field = tokenizer, is_field
        self.steps: list[Tensor] = []
        self.is_over = False

    def add(self, x_t: Tensor, done: int) -> None:
        """x_t, or of a field x_0's estimate, after `done` steps.

        A later batch starts again at 1, and from there on nothing is kept.
        """
        self.is_over |= done <= len(self.steps)  # the first may have been done early, and a later one go on longer
        if not self.is_over:
            self.steps.append(x_t[:MAX_SAMPLES].clone())

    @torch.no_grad()
    def frames(self) -> list[Tensor]:
        """(N, C, H, W) uint8 a step, from all masked to none; [MASK] is a grey patch. None if there was no step."""
        if not self.steps:
            return []
        tokenizer, (rows, columns), mask_id = self.tokenizer, self.tokenizer.grid, self.tokenizer.vocab_size
        if self.is_field:  # what is seen is the x_0 that each step took for the truth
            return [to_uint8(tokenizer.decode(x_0)).cpu() for x_0 in self.steps]
        everywhere = torch.ones(self.steps[0].shape[:2], dtype=torch.bool, device=self.steps[0].device)
        frames = []
        for x_t in [put_masks(self.steps[0], everywhere, mask_id), *self.steps]:
            is_masked = is_mask(x_t, mask_id)
            shown = x_t.nan_to_num(0) if x_t.is_floating_point() else x_t.masked_fill(is_masked, 0)
            images = to_uint8(tokenizer.decode(shown)).cpu()
            height, width = images.shape[-2] // rows, images.shape[-1] // columns
            patches = is_masked.view(-1, 1, rows, columns).cpu()
            patches = patches.repeat_interleave(height, 2).repeat_interleave(width, 3)
            frames.append(images.masked_fill(patches, MASK_GREY))
        return frames


def write_animation(
    path: Path, recorder: Recorder, pixels: Tensor, n_columns: int = 0, milliseconds: int = 150
) -> None:
    """A looping GIF, or an animated PNG where the name ends so; the last frame stays two seconds.

    The finished samples `pixels` (N, C, H, W) uint8 are all there is to see where no step was needed.
    """
    shown = recorder.frames() or [pixels[:MAX_SAMPLES]]
    frames: list[Image.Image] = [grid(frame, n_columns) for frame in shown]
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    kind = "PNG" if path.suffix == ".png" else "GIF"
    with atomic(path) as file:
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0)
