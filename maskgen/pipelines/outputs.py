"""What pipelines return: samples, their tokens and how they were decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from maskgen.core.files import local_path
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.sheet import write_images, write_texts


@dataclass(frozen=True, repr=False)
class ImageOutput:
    """Generated images.

    Attributes:
        images: N images, PIL.
        labels: class id of each, -1 for none; None for a checkpoint without classes.
        tokens: (N, L) int64, or (N, L, D) float.
        pixels: (N, C, H, W) uint8.
        prompts: prompt of each; None without prompts.
        seeds: seed of each.
        unmasked_at: (N, L) int64, the step (from 1) at which each token was unmasked, 0 for tokens that were given;
            None for a Gaussian process, which changes all tokens in every step.
    """

    images: list[Image.Image]
    labels: list[int] | None
    tokens: Tensor
    pixels: Tensor
    prompts: list[str] | None = None
    seeds: tuple[int, ...] = ()
    unmasked_at: Tensor | None = None

    def save(self, path: str | Path, *, n_columns: int = 0, scale: int | None = None) -> Path:
        """Write all images: a sheet (`.png`, `.jpg`, `.webp`), an `.npz`, or a folder of PNG files; the path.

        Args:
            path: where; the ending chooses the format.
            n_columns: images in a row of a sheet; 0 makes it as square as possible.
            scale: whole factor by which images of a sheet are enlarged; None enlarges small ones to 56 pixels.

        Raises:
            UserError: another ending.
        """
        target = local_path(path)
        write_images(target, self.pixels, self.labels, n_columns, scale=scale)
        return target

    def __repr__(self) -> str:
        n, *shape = self.pixels.shape
        return f"ImageOutput({n} images {_times(shape)}, tokens {_times(self.tokens.shape)})"


@dataclass(frozen=True, repr=False)
class TextOutput:
    """Generated texts.

    Attributes:
        texts: N strings.
        tokens: (N, L) int64.
        seeds: seed of each.
        unmasked_at: (N, L) int64, the step (from 1) at which each token was unmasked, 0 for tokens that were given.
    """

    texts: list[str]
    tokens: Tensor
    seeds: tuple[int, ...] = ()
    unmasked_at: Tensor | None = None

    def save(self, path: str | Path) -> Path:
        """Write all texts: a `.txt`, or a `.jsonl` of objects with `seed` and `text`; the path.

        Raises:
            UserError: another ending.
        """
        target = local_path(path)
        write_texts(target, self.texts, self.seeds)
        return target

    def __repr__(self) -> str:
        first = self.texts[0] if len(self.texts[0]) <= 40 else self.texts[0][:37] + "..."
        return f"TextOutput({len(self.texts)} texts, tokens {_times(self.tokens.shape)}, first {first!r})"


class ImageStep(NamedTuple):
    """A step of a decoding: its number, the tokens after it, and the images with [MASK] as grey patches."""

    step: int
    tokens: Tensor
    images: list[Image.Image]


class TextStep(NamedTuple):
    """A step of a decoding: its number, the tokens after it, and the texts with `_` for [MASK]."""

    step: int
    tokens: Tensor
    texts: list[str]


def _times(shape: Sequence[int]) -> str:
    """A shape as `3 x 32 x 32`."""
    return " x ".join(map(str, shape))


class ImageBatch(NamedTuple):
    """A batch of samples: tokens (B, L) or (B, L, D), images (B, C, H, W) uint8, unmasking steps (B, L) or None."""

    tokens: Tensor
    images: Tensor
    unmasked_at: Tensor | None


def joined(
    batches: Sequence[ImageBatch], seeds: Sequence[int], labels: Tensor | None, names: Sequence[str]
) -> ImageOutput:
    """The batches of a call as one output."""
    pixels = torch.cat([batch.images for batch in batches])
    orders = [batch.unmasked_at for batch in batches if batch.unmasked_at is not None]
    return ImageOutput(
        images=to_pil(pixels),
        labels=None if labels is None else labels.tolist(),
        tokens=torch.cat([batch.tokens for batch in batches]),
        pixels=pixels,
        prompts=[names[index % len(names)] for index in range(len(pixels))] if names else None,
        seeds=tuple(seeds),
        unmasked_at=torch.cat(orders) if orders else None,
    )
