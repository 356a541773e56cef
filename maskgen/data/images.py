"""What an image data set is to the rest, and the one that needs no files."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.errors import UserError
from maskgen.registry import Registry
from maskgen.rng import Rng

if TYPE_CHECKING:
    from maskgen.data.text import TextSource

SplitName = Literal["train", "test"]


class DataError(UserError):
    """Data that are missing, damaged or not what they were said to be; the message names the file."""


def require_columns(name: str, there: Sequence[str], *wanted: str | None) -> None:
    """See that a data set `name` has the columns wanted of it; None wants none.

    Raises:
        DataError: one is missing; the message lists those there are.
    """
    for column in wanted:
        if column is not None and column not in there:
            raise DataError(f"data set {name!r} has no column {column!r}; it has {list(there)}")


def shards_in(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file below a folder: what tells its content from another."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


class ImageSplit(Dataset[tuple[Tensor, Tensor]], ABC):
    """Images of one shape; `labels` (N,) int64 is `NULL` where there is none."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and label () int64."""
        images, labels = self.__getitems__([range(len(self))[index]])
        return images[0], labels[0]

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,) int64."""

    def name_of(self, row: int) -> str:
        """What a message calls an image."""
        return f"image {row}"

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when any image, its preparation or the order does."""


class ImageSource(ABC):
    """A data set with a train and a test split, each loaded when it is first asked for."""

    name: str
    has_captions: ClassVar[bool] = False

    def __init__(self) -> None:
        self._splits: dict[str, ImageSplit] = {}

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the images have no labels."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @classmethod
    def shape_of(cls, arguments: Mapping[str, Any]) -> tuple[int, int, int]:  # noqa: ARG003
        """`image_shape` for constructor arguments, without looking for the data; those with one shape have it fixed."""
        return cast(tuple[int, int, int], cls.image_shape)

    @abstractmethod
    def _load(self, split: SplitName) -> ImageSplit: ...

    def split(self, name: SplitName) -> ImageSplit:
        """The images of one split.

        Raises:
            DataError: unknown split, no image in it, or files that are missing or damaged.
        """
        if name not in ("train", "test"):
            raise DataError(f"unknown split {name!r} of {self.name}; choose from train, test")
        if name not in self._splits:
            loaded = self._load(name)
            if not len(loaded):
                raise DataError(f"the {name} split of {self.name} has no image; choose a larger share or more images")
            self._splits[name] = loaded
        return self._splits[name]


class SizedSource(ImageSource):
    """A data set whose images are brought to `size` x `size` with `channels` channels."""

    size: int
    channels: Literal[1, 3]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @classmethod
    def shape_of(cls, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        channels = arguments.get("channels", inspect.signature(cls).parameters["channels"].default)
        return (channels, arguments["size"], arguments["size"])


DATASETS: Registry[ImageSource | TextSource] = Registry("data set", base=ImageSource)


class TensorSplit(ImageSplit):
    """Images held in memory: `images` (N, C, H, W) uint8, `labels` (N,) int64."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in (self.images, self.labels):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


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
