"""Fashion-MNIST with captions and maps that are computed from the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.streams import Part
from maskgen.data.base import DATASETS, DataError, ImageSplit, SplitName, TensorSplit
from maskgen.data.image.fashion import FashionMnist

FOREGROUND = 25
"""Grey levels above it are of the garment; the background of Fashion-MNIST is 0."""
NAMES = tuple(name.split("/")[0].lower() for name in FashionMnist.classes)
TONES, TEXTURES, SHAPES = ("dark", "grey", "light"), ("plain", "shaded"), ("narrow", "even", "wide")
TONE_ENDS, TEXTURE_ENDS, SHAPE_ENDS = (140.0, 185.0), (47.0,), (0.62, 1.05)
"""Mean and standard deviation of the garment's grey levels, and width over height of its box: about the quantiles of
the training pictures, so that no word is rare."""


def attributes_of(images: Tensor) -> list[tuple[str, str, str]]:
    """Tone, texture and shape of pictures (N, 1, H, W) uint8."""
    grey = images[:, 0].float()
    is_inside = grey > FOREGROUND
    n = is_inside.sum((1, 2)).clamp(min=1)
    mean = (grey * is_inside).sum((1, 2)) / n
    spread = (((grey - mean[:, None, None]) ** 2 * is_inside).sum((1, 2)) / n).sqrt()
    ratio = is_inside.any(1).sum(1) / is_inside.any(2).sum(1).clamp(min=1)
    columns = [
        torch.bucketize(value, torch.tensor(ends, device=images.device)).tolist()
        for value, ends in ((mean, TONE_ENDS), (spread, TEXTURE_ENDS), (ratio, SHAPE_ENDS))
    ]
    return [(TONES[tone], TEXTURES[texture], SHAPES[shape]) for tone, texture, shape in zip(*columns, strict=True)]


def captions_of(images: Tensor, labels: Tensor) -> list[str]:
    """`a dark plain narrow dress` for pictures (N, 1, H, W) uint8 and labels (N,)."""
    words = zip(attributes_of(images), labels.tolist(), strict=True)
    return [f"a {' '.join(attributes)} {NAMES[label]}" for attributes, label in words]


class AttributedSplit(TensorSplit):
    """Pictures, labels, captions and maps; a map has the class 0 outside and 1 ... `levels` by grey level inside."""

    def __init__(self, images: Tensor, labels: Tensor, levels: int) -> None:
        super().__init__(images, labels)
        self.levels = levels

    def part(self, name: str, indices: Sequence[int]) -> Part:
        if name not in ("caption", "map"):
            return super().part(name, indices)
        images, labels = self.__getitems__(indices)
        if name == "caption":
            return captions_of(images, labels)
        grey = images[:, 0].long()
        share = (grey - FOREGROUND - 1).clamp(min=0) * self.levels // (255 - FOREGROUND)
        return torch.where(grey > FOREGROUND, 1 + share, 0)


@DATASETS.register("fashion_attributes")
class FashionAttributes(FashionMnist):
    """Fashion-MNIST with captions and segmentation maps from a template: no file beside the pictures.

    A caption names tone, texture, shape and class, `a dark plain narrow dress`; a map separates the garment from the
    background, and its grey levels from each other.

    Args:
        path, n_train, n_test: as of `fashion_mnist`.
        map_levels: classes of a map beside the background, by grey level; 1 is the garment alone.
    """

    parts: ClassVar[tuple[str, ...]] = ("image", "label", "caption", "map")

    def __init__(
        self, path: str | None = None, n_train: int | None = None, n_test: int | None = None, map_levels: int = 1
    ) -> None:
        super().__init__(path, n_train, n_test)
        if not 1 <= map_levels <= 16:
            raise DataError(f"map_levels must be in 1 to 16, got {map_levels}")
        self.map_levels = map_levels

    @property
    def map_classes(self) -> tuple[str, ...]:
        if self.map_levels == 1:
            return ("background", "garment")
        return ("background", *(f"grey {level}" for level in range(1, self.map_levels + 1)))

    def _load(self, split: SplitName) -> ImageSplit:
        found = super()._load(split)
        assert isinstance(found, TensorSplit)
        return AttributedSplit(found.images, found.labels, self.map_levels)
