"""Handwritten digits of scikit-learn."""

from __future__ import annotations

import torch

from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, ImageSource, ImageSplit, SplitName, TensorSplit


@DATASETS.register("digits")
class Digits(ImageSource):
    """Handwritten digits of scikit-learn, 8 x 8, ten classes: 1,500 train and 297 test, needs no file."""

    name = "digits"
    classes = tuple("0123456789")
    image_shape = (1, 8, 8)

    def _load(self, split: SplitName) -> ImageSplit:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)[:, None]
        order = Rng.stream("digits").permutation(1, len(images))[0]
        rows = order[:1500] if split == "train" else order[1500:]
        return TensorSplit(images[rows], torch.from_numpy(data.target).long()[rows])
