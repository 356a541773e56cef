"""Image data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskgen.core.errors import DiskFull, first_line
from maskgen.core.files import is_disk_full, local_path
from maskgen.core.predictions import NULL
from maskgen.core.terminal import printable
from maskgen.data.base import DATASETS, DataError, ImageSplit, SizedSource, SplitName, require_columns
from maskgen.data.image.pictures import Channels, check_size, decoded


class HubSplit(ImageSplit):
    """Rows of a `datasets.Dataset` whose column `column` holds images, decoded when they are read."""

    def __init__(self, name: str, rows: Any, column: str, labels: Tensor, size: int, channels: Channels) -> None:
        from datasets import Image

        self.name, self.column, self.labels = name, column, labels
        self.rows = rows.select_columns([column])  # other columns would be decoded too
        self._identity = self.rows._fingerprint
        if isinstance(self.rows.features[column], Image):  # decoded here, as only some formats are allowed
            self.rows = self.rows.cast_column(column, Image(decode=False))
        self.size, self.channels = size, channels

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([self._image(row) for row in indices]), self.labels[torch.as_tensor(indices)]

    def _image(self, row: int) -> Tensor:
        try:
            return decoded(self.rows[row][self.column], self.size, self.channels)
        except Exception as error:  # as in `read_image`
            raise DataError(f"{self.name}, row {row}: no readable image in {self.column!r}: {error}") from error

    def fingerprint(self) -> str:
        key = (self._identity, self.column, self.size, self.channels, self.labels.tolist())
        return hashlib.sha256(repr(key).encode()).hexdigest()


@DATASETS.register("hub")
class Hub(SizedSource):
    """A data set of the Hugging Face hub, `owner/name`, with a column of images.

    Args:
        name: as the hub spells it.
        size: height and width images are brought to, the middle cut out.
        channels: 3 for colour, 1 for grey.
        image_column: the column of images.
        label_column: the column of classes: class labels, numbers or words; null for none.
        train_split: what the data set calls its training split; slices as in `train[:90%]` work.
        test_split: the same of the test split.
        revision: branch, tag or commit; a commit keeps the data the same for good.
    """

    def __init__(
        self,
        name: str,
        size: int,
        channels: Channels = 3,
        image_column: str = "image",
        label_column: str | None = "label",
        train_split: str = "train",
        test_split: str = "test",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        check_size(size)
        if name.startswith((".", "/", "~")) or local_path(name).exists():
            raise DataError(f"{name} is a path, not a name on the hub; use {{type: folder, path: {name}}}")
        self.name, self.size, self.channels, self.revision = name, size, channels, revision
        self.image_column, self.label_column = image_column, label_column
        self.split_names = {"train": train_split, "test": test_split}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if self.label_column is None:
            return ()
        feature = self._train_rows.features[self.label_column]
        names = getattr(feature, "names", None) or sorted(set(self._train_rows[self.label_column]) - {None})
        return tuple(printable(str(name)) for name in names)

    @cached_property
    def _train_rows(self) -> Any:
        return self._fetch(self.split_names["train"])

    def _fetch(self, split: str) -> Any:
        from datasets import load_dataset

        try:
            rows = load_dataset(self.name, split=split, revision=self.revision)
        except Exception as error:  # connection, name, split, revision, disk: each its own type
            kind = DiskFull if is_disk_full(error) else DataError
            raise kind(
                f"data set {self.name!r}, split {split!r}, cannot be loaded from the hub: {first_line(error)}"
            ) from error
        require_columns(self.name, rows.column_names, self.image_column, self.label_column)
        return rows

    def _load(self, split: SplitName) -> ImageSplit:
        rows = self._train_rows if split == "train" else self._fetch(self.split_names[split])
        return HubSplit(self.name, rows, self.image_column, self._labels(rows), self.size, self.channels)

    def _labels(self, rows: Any) -> Tensor:
        """(N,) int64, `NULL` where a label is missing or hidden: the hub writes -1 there, which is `NULL`."""
        if self.label_column is None:
            return torch.full((len(rows),), NULL, dtype=torch.int64)
        values = list(rows[self.label_column])
        if hasattr(rows.features[self.label_column], "names"):
            return torch.tensor([NULL if value is None else value for value in values], dtype=torch.int64)
        number = {name: label for label, name in enumerate(self.classes)}
        words = [None if value is None else printable(str(value)) for value in values]
        strange = sorted({word for word in words if word is not None and word not in number})
        if strange:
            raise DataError(f"{self.name}: class {strange[0]!r} of {self.label_column!r} has no training image")
        return torch.tensor([NULL if word is None else number[word] for word in words], dtype=torch.int64)
