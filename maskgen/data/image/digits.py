"""Handwritten digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, DataError, ImageSource, ImageSplit, SplitName, TensorSplit

SIDE = 8


@DATASETS.register("digits")
class Digits(ImageSource):
    """Handwritten digits of scikit-learn, 8 x 8, ten classes: 1,500 train and 297 test, needs no file.

    Args:
        size: side of the images, enlarged by bicubic interpolation.
    """

    name = "digits"
    classes = tuple("0123456789")
    has_size = True

    def __init__(self, size: int = SIDE) -> None:
        super().__init__()
        if size < SIDE:
            raise DataError(f"size must be at least {SIDE}, the side of the digits, got {size}")
        self.size = size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, self.size, self.size)

    @classmethod
    def shape_of(cls, arguments: Mapping[str, object]) -> tuple[int, int, int]:
        size = int(str(arguments.get("size", SIDE)))
        return (1, size, size)

    def _load(self, split: SplitName) -> ImageSplit:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)[:, None]
        order = Rng.stream("digits").permutation(1, len(images))[0]
        rows = order[:1500] if split == "train" else order[1500:]
        return TensorSplit(_enlarged(images[rows], self.size), torch.from_numpy(data.target).long()[rows])


def _enlarged(images: Tensor, size: int) -> Tensor:
    """(N, 1, 8, 8) uint8 -> (N, 1, size, size) uint8; the same for size 8."""
    if size == SIDE:
        return images
    larger = F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).to(torch.uint8)
