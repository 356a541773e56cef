"""Fashion-MNIST, from IDX files or the hub."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.errors import first_line
from maskgen.core.files import local_path, open_regular
from maskgen.data.base import DATASETS, DataError, ImageSource, ImageSplit, SplitName, TensorSplit
from maskgen.data.image.hub_images import Hub

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_HUB = "zalando-datasets/fashion_mnist"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_FILES: dict[SplitName, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

MOST_BYTES = 2**28
"""Bytes of an IDX file that are read, unpacked; Fashion-MNIST's have 47 million."""


@DATASETS.register("fashion_mnist")
class FashionMnist(ImageSource):
    """Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 x 28, ten classes (arXiv 1708.07747).

    Args:
        path: folder with the four IDX files, gzipped or not. Without it the files of Debian's package
            `dataset-fashion-mnist` are taken, and without these the hub's.
        n_train: at most this many training images, the first ones.
        n_test: at most this many test images, the first ones.
    """

    name = "fashion_mnist"
    locations: ClassVar[tuple[str, ...]] = ("path",)
    classes = FASHION_CLASSES
    image_shape = (1, 28, 28)

    def __init__(self, path: str | None = None, n_train: int | None = None, n_test: int | None = None) -> None:
        super().__init__()
        for key, limit in (("n_train", n_train), ("n_test", n_test)):
            if limit is not None and limit < 1:
                raise DataError(f"{key} must be at least 1, got {limit}; leave it out for all images")
        self.folder = local_path(path) if path is not None else FASHION_FOLDER
        self.limits = {"train": n_train, "test": n_test}
        missing = [stem for stems in FASHION_FILES.values() for stem in stems if _idx_file(self.folder, stem) is None]
        self.has_files = not missing
        if path is not None and missing:
            raise DataError(f"{self.folder} lacks {', '.join(missing)} (with or without .gz) of Fashion-MNIST")

    def _load(self, split: SplitName) -> ImageSplit:
        images, labels = self._from_files(split) if self.has_files else self._from_hub(split)
        return TensorSplit(images[: self.limits[split]], labels[: self.limits[split]])

    def _from_files(self, split: SplitName) -> tuple[Tensor, Tensor]:
        images_file, labels_file = (_idx_file(self.folder, stem) or self.folder / stem for stem in FASHION_FILES[split])
        images, labels = read_idx(images_file), read_idx(labels_file)
        if images.shape[1:] != (28, 28):
            raise DataError(f"{images_file} holds an array {tuple(images.shape)}; Fashion-MNIST is (N, 28, 28)")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{labels_file} holds an array {tuple(labels.shape)} for {len(images)} images")
        if len(labels) and int(labels.max()) >= len(FASHION_CLASSES):
            raise DataError(f"{labels_file} holds the label {int(labels.max())}; Fashion-MNIST has 0 to 9")
        return images[:, None], labels.long()

    def _from_hub(self, split: SplitName) -> tuple[Tensor, Tensor]:
        try:
            rows = Hub(FASHION_HUB, size=28, channels=1).split(split)
        except DataError as error:
            raise DataError(
                "Fashion-MNIST was not found. Do one of these: `apt install dataset-fashion-mnist`; set data.path to a "
                f"folder with its four IDX files; give network access to the Hugging Face hub ({error})"
            ) from error
        return rows.__getitems__(range(len(rows)))


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((file for file in (folder / stem, folder / f"{stem}.gz") if file.is_file()), None)


def read_idx(file: Path) -> Tensor:
    """The uint8 array of an IDX file, gzipped if its name ends in .gz.

    Raises:
        DataError: unreadable, another format, or more or fewer bytes than the header says.
    """
    try:
        with os.fdopen(open_regular(file), "rb") as stored:
            source = gzip.GzipFile(fileobj=stored) if file.suffix == ".gz" else stored
            raw = bytearray(source.read(MOST_BYTES + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}; fetch it again") from error
    if len(raw) > MOST_BYTES:
        raise DataError(f"{file} holds more than the {MOST_BYTES:,} bytes that are read; it is none of Fashion-MNIST's")
    n_dims = raw[3] if len(raw) >= 4 else 0
    start = 4 + 4 * n_dims
    if raw[:3] != b"\x00\x00\x08" or not n_dims or len(raw) < start:
        raise DataError(f"{file} is no IDX file of bytes: it starts with {bytes(raw[:4])!r}")
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise DataError(f"{file} holds {len(raw) - start} bytes, its header says {math.prod(shape)}; fetch it again")
    return torch.frombuffer(raw, dtype=torch.uint8)[start:].view(shape)
