"""Interfaces of image and text data sets, and their registry.

A source declares what recipes, checks and programs need to know before it is built: `kind` of its samples, `has_size`
(images are brought to a size that is an argument), `has_captions`, the `parts` of a sample, and `locations`, the
arguments that say where the data lie: fingerprints identify the data.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.core.errors import UserError
from maskgen.core.registry import Registry
from maskgen.core.streams import Part, StreamKind
from maskgen.core.terminal import first_few

SplitName = Literal["train", "test"]
TEXT_SPLITS = ("train", "validation", "test")


class DataError(UserError):
    """Data that are missing, damaged or of another kind than expected; the message names the file."""


def require_columns(name: str, there: Sequence[str], *required: str | None) -> None:
    """Check that a data set `name` has the required columns; None is skipped.

    Raises:
        DataError: one is missing; the message lists those there are.
    """
    for column in required:
        if column is not None and column not in there:
            raise DataError(f"data set {name!r} has no column {column!r}; it has {list(there)}")


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

    def part(self, name: str, indices: Sequence[int]) -> Part:
        """A part of samples, one of the source's `parts`.

        `image` (B, C, H, W) uint8, `label` (B,) int64, `caption` B strings, `map` (B, H, W) int64.

        Raises:
            DataError: these data have no such part.
        """
        if name == "label":
            return self.labels[torch.as_tensor(indices)]
        if name != "image":
            raise DataError(f"these data have no {name}")
        return self.__getitems__(indices)[0]

    def name_of(self, row: int) -> str:
        """Name of an image in messages."""
        return f"image {row}"

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the images, their preparation and order, independent of where they are stored."""


class ImageSource(ABC):
    """A data set with a train and a test split, each loaded on first use."""

    name: str
    kind: ClassVar[StreamKind] = "image"
    has_size: ClassVar[bool] = False
    has_captions: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("image", "label")
    locations: ClassVar[tuple[str, ...]] = ()

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

    @property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the classes of segmentation maps; empty without maps."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what was left out or chosen in reading the data, for the start of a run."""
        return ()

    def report(self) -> list[str]:
        """Number and first names of the classes, sizes of the splits, and `notes`: lines for the start of a run."""
        n, names = len(self.classes), first_few(self.classes)
        kinds = f"{n:,} {'class' if n == 1 else 'classes'} ({names})" if n else "no classes"
        n_train, n_test = (len(self.split(name, may_be_empty=True)) for name in ("train", "test"))
        return [f"data {self.name}: {kinds}; {n_train:,} training and {n_test:,} held-out images", *self.notes]

    @classmethod
    def shape_of(cls, arguments: Mapping[str, object]) -> tuple[int, int, int]:  # noqa: ARG003
        """`image_shape` for constructor arguments, without looking for the data; those with one shape have it fixed."""
        entry: Any = cls
        shape: tuple[int, int, int] = entry.image_shape
        return shape

    @abstractmethod
    def _load(self, split: SplitName) -> ImageSplit: ...

    def split(self, name: SplitName, *, may_be_empty: bool = False) -> ImageSplit:
        """The images of one split.

        Raises:
            DataError: unknown split, no image in it unless it `may_be_empty`, or files that are missing or damaged.
        """
        if name not in ("train", "test"):
            raise DataError(f"unknown split {name!r} of {self.name}; choose from train, test")
        if name not in self._splits:
            self._splits[name] = self._load(name)
        if not len(self._splits[name]) and not may_be_empty:
            raise DataError(
                f"the {name} split of {self.name} has no image; choose a larger share or more images"
                + ("" if name == "train" else ", or train.validation_rows=0 to train without it")
            )
        return self._splits[name]


class SizedSource(ImageSource):
    """A data set whose images are brought to `size` x `size` with `channels` channels."""

    has_size: ClassVar[bool] = True
    size: int
    channels: Literal[1, 3]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @classmethod
    def shape_of(cls, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        channels = arguments.get("channels", inspect.signature(cls).parameters["channels"].default)
        return (channels, arguments["size"], arguments["size"])


class TextSource(ABC):
    """A text, or documents in a fixed order; each split is a contiguous part of it: train, validation, test.

    Args:
        length: tokens in a row.
        stride: training rows start every so many tokens; null for `length`, no overlap.
        validation_fraction, test_fraction: shares of the characters of one text, or of the documents, rounded down.
    """

    name: str
    kind: ClassVar[StreamKind] = "text"
    has_size: ClassVar[bool] = False
    has_captions: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("text",)
    locations: ClassVar[tuple[str, ...]] = ()
    has_answers: ClassVar[bool] = False
    """Whether rows are a prompt, which is never masked, and an answer."""
    classes: tuple[str, ...] = ()
    is_one_text: bool = False

    def __init__(
        self,
        length: int = 256,
        stride: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        if length < 1:
            raise DataError(f"length must be at least 1, got {length}")
        if stride is not None and not 1 <= stride <= length:
            raise DataError(f"stride must be 1 to length ({length}), got {stride}; larger ones would leave text out")
        fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
        for name, fraction in fractions.items():
            if not 0 <= fraction < 1:
                raise DataError(f"{name} must be in [0, 1), got {fraction}")
        if sum(fractions.values()) >= 1:
            raise DataError(f"validation_fraction + test_fraction must be below 1, got {sum(fractions.values()):g}")
        self.length, self.stride, self.fractions = length, stride, fractions

    @abstractmethod
    def _size(self) -> int:
        """Number of characters of one text, or of documents."""

    @abstractmethod
    def _part(self, first: int, last: int) -> Iterator[str]:
        """Characters `first` to `last` as one document, or documents `first` to `last`."""

    def documents(self, split: str) -> Iterator[str]:
        """The texts of a split, in order.

        Raises:
            DataError: unknown split, or text that is missing or damaged.
        """
        return self._part(*self._range(split))

    def held_out(self) -> Iterator[str]:
        """The texts of validation and test, in order."""
        for split in TEXT_SPLITS[1:]:
            yield from self.documents(split)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what was left out or chosen in reading the data, for the start of a run."""
        return ()

    def report(self) -> list[str]:
        """Sizes of the splits, and `notes`: lines for the start of a run."""
        unit = "characters" if self.is_one_text else "documents"
        sizes = ", ".join(f"{last - first:,} {split}" for split in TEXT_SPLITS for first, last in [self._range(split)])
        return [f"data {self.name}: {sizes} {unit}", *self.notes]

    def fingerprint(self, split: str) -> str:
        """Identifies the text of a split, independent of where it is stored."""
        digest = hashlib.sha256()
        for document in self.documents(split):
            raw = document.encode(errors="surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()

    def _range(self, split: str) -> tuple[int, int]:
        self._check(split)
        size = self._size()
        n_validation, n_test = (int(size * fraction) for fraction in self.fractions.values())
        ends = (0, size - n_validation - n_test, size - n_test, size)
        index = TEXT_SPLITS.index(split)
        return ends[index], ends[index + 1]

    def _check(self, split: str) -> None:
        if split not in TEXT_SPLITS:
            raise DataError(f"unknown split {split!r} of {self.name}; choose from {', '.join(TEXT_SPLITS)}")


DATASETS: Registry[ImageSource | TextSource] = Registry("data set", base=ImageSource, home="maskgen.data:DATASETS")


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
