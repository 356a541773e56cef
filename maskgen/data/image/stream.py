"""Image data sets that are read in sequence: shards of the hub or a folder, by `datasets`, none of them stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maskgen.core.errors import DiskFull, first_line
from maskgen.core.files import is_disk_full, local_path, parse_json
from maskgen.core.predictions import NULL
from maskgen.core.terminal import printable
from maskgen.data.base import DATASETS, DataError, ImageSplit, SizedSource, SplitName, require_columns
from maskgen.data.cache import default_cache_dir, write_cache
from maskgen.data.content import CONTENT, folder_digest
from maskgen.data.image.pictures import Channels, check_size, decoded
from maskgen.data.interleave import Layout

READ = 1024


class ShardReader:
    """Values of a column, by shard and row: read forwards, a window at a time, and not decoded.

    Args:
        rows: a `datasets.IterableDataset` that does not decode.
        column: of it.
        window: rows that are read at once.
        n_windows: the last so many are kept.
    """

    def __init__(self, rows: Any, column: str, window: int, n_windows: int) -> None:
        self.rows, self.column, self.window, self.n_windows = rows, column, window, n_windows
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, tuple[int, Iterator[dict[str, list[object]]]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], list[object]] = OrderedDict()

    def value(self, shard: int, row: int) -> object:
        """The value of a row of a shard."""
        if self._process != os.getpid():  # a worker must not share open files with the process it was forked from
            self._forget()
        number, place = divmod(row, self.window)
        if (shard, number) not in self._windows:
            self._windows[shard, number] = self._read(shard, number)
            while len(self._windows) > self.n_windows:
                self._windows.popitem(last=False)
        self._windows.move_to_end((shard, number))
        return self._windows[shard, number][place]

    def _read(self, shard: int, number: int) -> list[object]:
        reached, batches = self._open.pop(shard, (-1, iter(())))
        if reached != number:
            part = one_shard(self.rows, shard)
            batches = (part.skip(number * self.window) if number else part).iter(batch_size=self.window)
        values = next(batches)[self.column]
        self._open[shard] = (number + 1, batches)
        while len(self._open) > self.n_windows:
            self._open.popitem(last=False)
        return values

    def __reduce__(self) -> tuple[object, ...]:
        return ShardReader, (self.rows, self.column, self.window, self.n_windows)


def one_shard(rows: Any, shard: int) -> Any:
    """A shard of an `IterableDataset`.

    To be read by `iter(batch_size)`: a plain iteration in a data worker gives that worker's share only.
    """
    return rows.shard(num_shards=rows.num_shards, index=shard)


class StreamSplit(ImageSplit):
    """Rows of shards; `counts` are their numbers, `labels` (N,) those of all rows, shard by shard.

    `known` identifies the shards.
    """

    def __init__(self, source: Stream, reader: ShardReader, counts: Sequence[int], labels: Tensor, known: str) -> None:
        self.name, self.size, self.channels, self.layout = source.name, source.size, source.channels, source.layout
        self.reader, self.labels, self.known = reader, labels, known
        self.prefix = CONTENT if source.folder.is_dir() else ""
        self.starts = torch.tensor([0, *counts]).cumsum(0)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return torch.stack([self._image(*self._place(row)) for row in rows.tolist()]), self.labels[rows]

    def _place(self, row: int) -> tuple[int, int]:
        """Shard, and row in it."""
        shard = int(torch.searchsorted(self.starts, row, right=True)) - 1
        return shard, row - int(self.starts[shard])

    def _image(self, shard: int, row: int) -> Tensor:
        try:
            return decoded(self.reader.value(shard, row), self.size, self.channels)
        except Exception as error:  # connection, disk, decoders: each its own type
            raise DataError(
                f"{self.name}, shard {shard}, row {row}: no readable image in {self.reader.column!r}: {error}"
            ) from error

    def name_of(self, row: int) -> str:
        return "{}, shard {}, row {}".format(self.name, *self._place(row))

    def permute(self, seed: int, epoch: int, n: int) -> Tensor:
        """(n,) int64: the order of the rows in an epoch, in which shards are read forwards; see `Layout`."""
        order = self.layout.order(self.starts.diff().tolist(), seed, epoch)
        assert len(order) == n
        return order

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.known, self.reader.column, self.size, self.channels)).encode())
        for numbers in (self.starts, self.labels):
            digest.update(numbers.numpy().tobytes())
        return self.prefix + digest.hexdigest()


@DATASETS.register("stream")
class Stream(SizedSource):
    """Images of the hub or of a folder, in shards that `datasets` knows (parquet, arrow, tar), read while training.

    Nothing is stored but an index: how many rows each shard has, and their labels. It is made by reading the label
    column once (of parquet that column only, of other formats the shards).

    Args:
        name: of a data set on the hub, or a folder of shards.
        size: height and width images are brought to, the middle cut out.
        channels: 3 for colour, 1 for grey.
        image_column: the column of images; in tar files the ending, `jpg` or `png`.
        label_column: the column of classes: class labels, numbers or words (tar: `cls`); null for none.
        train_split, test_split: what the data set calls them. A stream is not cut in two: one without a test split has
            to name another, be it the training one, whose images the validation then sees.
        revision: branch, tag or commit; of a hub's data set nothing else says that it has changed.
        buffer: rows of a shard that are shuffled among each other, and held, not decoded, at once.
        lanes: shards that are read side by side; processes share them.
        batch_size: rows over which the lanes are dealt; with `train.batch_size / train.accumulate` each of as many
            processes as divide `lanes` reads its own shards, and with another number only more than those.
    """

    locations: ClassVar[tuple[str, ...]] = ("name",)

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
        buffer: int = 256,
        lanes: int = 8,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        check_size(size)
        self.folder = local_path(name)
        if name.startswith((".", "/", "~")) and not self.folder.is_dir():
            raise DataError(f"{name} is no folder; give one with shards, or a name on the hub")
        self.name, self.size, self.channels, self.revision = name, size, channels, revision
        self.image_column, self.label_column = image_column, label_column
        self.split_names = {"train": train_split, "test": test_split}
        self.layout = Layout(buffer, lanes, batch_size)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if self.label_column is None:
            return ()
        names = getattr(self._rows("train").features[self.label_column], "names", None)
        return tuple(printable(str(name)) for name in names or self._index("train")[2])

    def _load(self, split: SplitName) -> ImageSplit:
        rows, (counts, codes, values) = self._rows(split), self._index(split)
        reader = ShardReader(rows, self.image_column, self.layout.window, 2 * self.layout.lanes + 1)
        return StreamSplit(self, reader, counts, self._labels(codes, values), self._known(split))

    def _labels(self, codes: Tensor, values: list[object]) -> Tensor:
        """(N,) int64: what the training data call the class of a value, `NULL` where there is none."""
        if self.label_column is None:
            return torch.full_like(codes, NULL)
        if getattr(self._rows("train").features[self.label_column], "names", None):
            number = {value: value for value in values}  # the hub writes -1, which is NULL, where a label is hidden
        else:
            number = {value: label for label, value in enumerate(self._index("train")[2])}
        strange = [value for value in values if value not in number]
        if strange:
            raise DataError(f"{self.name}: class {strange[0]!r} of {self.label_column!r} has no training image")
        table = torch.tensor([*(number[value] for value in values), NULL])
        return table[codes]

    def _rows(self, split: SplitName, **options: Any) -> Any:
        from datasets import load_dataset

        where, part = str(self.folder) if self.folder.is_dir() else self.name, self.split_names[split]
        try:
            rows = load_dataset(where, split=part, revision=self.revision, streaming=True, **options).decode(False)
        except Exception as error:  # connection, name, split, revision, disk: each its own type
            way = "; name a split that it has in data.test_split" if split == "test" else ""
            raise (DiskFull if is_disk_full(error) else DataError)(
                f"data set {self.name!r}, split {part!r}, cannot be streamed: {first_line(error)}{way}"
            ) from error
        if not options:  # else some columns were left out on purpose
            require_columns(self.name, rows.column_names or [], self.image_column, self.label_column)
        return rows

    @cached_property
    def _identity(self) -> list[str | None]:
        """Identity of the shards: name and revision on the hub, content of a local folder wherever it lies."""
        return [folder_digest(self.folder)] if self.folder.is_dir() else [self.name, self.revision]

    def _known(self, split: SplitName) -> str:
        """Identity of the shards and labels of a split."""
        key = [*self._identity, self.split_names[split], self.label_column]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def _index(self, split: SplitName) -> tuple[list[int], Tensor, list[object]]:
        """Rows of each shard; the number of each row's label among `values`, -1 for none; these, sorted."""
        known = self._known(split)
        file = default_cache_dir() / f"stream-{known[:24]}.safetensors"
        found = _stored(file, known)
        if found is None:
            found = self._read_index(split)
            checked = {"identity": known, "digest": _digest(found)}
            write_cache(file, lambda out: out.write(save(found, checked)))
        values = json.loads(bytes(found["values"].tolist()))
        return found["counts"].tolist(), found["codes"].long(), values

    def _classes_among(self, labels: list[Any]) -> list[object]:
        try:
            return sorted({label for label in labels if label is not None})
        except TypeError as error:  # lists and pictures, or words and numbers
            raise DataError(
                f"{self.name}: column {self.label_column!r} has no classes (class labels, numbers or words); choose "
                "another data.label_column, or null for none"
            ) from error

    def _read_index(self, split: SplitName) -> dict[str, Tensor]:
        rows, column = self._rows(split), self.label_column or self.image_column
        try:
            narrow = self._rows(split, columns=[column])  # parquet need not be read whole
            rows = narrow if narrow.num_shards == rows.num_shards and narrow.column_names == [column] else rows
        except DataError:
            pass
        counts: list[int] = []
        labels: list[object] = []
        for shard in range(rows.num_shards):
            before = len(labels)
            try:
                for batch in one_shard(rows, shard).iter(batch_size=READ):
                    labels += batch[column] if self.label_column else [None] * len(batch[column])
            except Exception as error:  # connection, disk, format: each its own type
                raise DataError(
                    f"{self.name}, shard {shard} of {split!r} cannot be read: {first_line(error)}"
                ) from error
            counts.append(len(labels) - before)
        values = self._classes_among(labels)
        number = {value: code for code, value in enumerate(values)} | {None: -1}
        return {
            "counts": torch.tensor(counts, dtype=torch.int64),
            "codes": torch.tensor([number[label] for label in labels], dtype=torch.int32),
            "values": torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8),
        }


def _stored(file: Path, identity: str) -> dict[str, Tensor] | None:
    """A stored index; None if there is none, or it is damaged or of other shards, and has to be read again."""
    try:
        with safe_open(file, "pt") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            facts = stored.metadata() or {}
        parse_json(bytes(found["values"].tolist()))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    is_whole = facts.get("identity") == identity and facts.get("digest") == _digest(found)
    return found if is_whole else None


def _digest(index: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(index.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
