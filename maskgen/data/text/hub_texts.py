"""Text data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from maskgen.core.errors import DiskFull, first_line
from maskgen.core.files import is_disk_full, local_path
from maskgen.data.base import DATASETS, DataError, TextSource, require_columns
from maskgen.data.content import CONTENT, folder_digest


@DATASETS.register("hub_text")
class HubText(TextSource):
    """A data set of the Hugging Face hub, `owner/name`, with a column of documents; streamed, also a folder of shards.

    OpenWebText with the usual test set: name Skylion007/openwebtext, train_split `train[:-100000]`, test_split
    `train[-100000:]`.

    Args:
        name: as the hub spells it; with streaming also a folder of shards that `datasets` knows (parquet, json ...).
        column: the column of texts.
        train_split: what the data set calls its training split; slices as in `train[:90%]` work without streaming.
        test_split: the same of the test split; null for the last `test_fraction` of the training split.
        config: the data set's configuration, if it has several.
        revision: branch, tag or commit; a commit keeps the data the same for good. With streaming it is the
            only sign that stored tokens are out of date.
        streaming: read documents over the network each time, those before a split too; only their tokens are stored.
        n_documents: use the first so many documents of the training split only.
        length, stride, validation_fraction, test_fraction: see `TextSource`; test_fraction is not used with test_split.
    """

    locations: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(
        self,
        name: str,
        column: str = "text",
        train_split: str = "train",
        test_split: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        n_documents: int | None = None,
        length: int = 256,
        stride: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        super().__init__(length, stride, validation_fraction, 0.0 if test_split is not None else test_fraction)
        self.folder = local_path(name)
        is_path = name.startswith((".", "/", "~")) or self.folder.exists()
        if is_path and not (streaming and self.folder.is_dir()):
            raise DataError(
                f"{name} is a path, not a name on the hub; use {{type: text_file, path: {name}}}, or streaming with a "
                "folder of shards"
            )
        if n_documents is not None and n_documents < 1:
            raise DataError(f"n_documents must be at least 1, got {n_documents}")
        self.name, self.column, self.config, self.revision = name, column, config, revision
        self.train_split, self.test_split = train_split, test_split
        self.streaming, self.n_documents = streaming, n_documents
        self._fetched: dict[str, object] = {}

    def documents(self, split: str) -> Iterator[str]:
        self._check(split)
        if split == "test" and self.test_split is not None:
            return self._read(self.test_split, 0, None)
        return super().documents(split)

    def fingerprint(self, split: str) -> str:
        self._check(split)
        if split == "test" and self.test_split is not None:
            part, places = self.test_split, (0, -1)
        else:
            part, places = self.train_split, self._range(split)
        known = (self.name, self.config, self.revision) if self.streaming else self._rows(part)._fingerprint
        if self.folder.is_dir():
            known = (folder_digest(self.folder), self.config)
        digest = hashlib.sha256(repr((known, part, places, self.column)).encode()).hexdigest()
        return CONTENT + digest if self.folder.is_dir() else digest

    def report(self) -> list[str]:
        lines = super().report()
        return lines if self.test_split is None else [*lines, f"test documents from split {self.test_split!r}"]

    def _size(self) -> int:
        rows = self._rows(self.train_split)
        if not self.streaming:
            return min(len(rows), self.n_documents or len(rows))
        known = (rows.info.splits or {}).get(self.train_split)
        sizes = [n for n in (getattr(known, "num_examples", None), self.n_documents) if n]
        if not sizes:
            raise DataError(f"the number of documents of data set {self.name!r} is unknown; give n_documents")
        return int(min(sizes))

    def _part(self, first: int, last: int) -> Iterator[str]:
        return self._read(self.train_split, first, last)

    def _read(self, part: str, first: int, last: int | None) -> Iterator[str]:
        rows = self._rows(part).select_columns([self.column])
        if self.streaming:
            chosen = islice(rows.skip(first), None if last is None else last - first)
        else:
            chosen = iter(rows.select(range(first, len(rows) if last is None else last)))
        index = first
        try:
            for row in chosen:
                if not isinstance(row[self.column], str):
                    raise TypeError(f"no text but {type(row[self.column]).__name__}")
                yield row[self.column]
                index += 1
        except Exception as error:  # connection, disk, damaged files: each its own type
            raise DataError(f"{self.name}, split {part!r}, row {index}: {first_line(error)}") from error

    def _rows(self, part: str) -> Any:
        from datasets import load_dataset

        if part not in self._fetched:
            try:
                where = str(self.folder) if self.folder.is_dir() else self.name
                rows = load_dataset(where, self.config, split=part, revision=self.revision, streaming=self.streaming)
            except Exception as error:  # connection, name, split, revision, disk: each its own type
                raise (DiskFull if is_disk_full(error) else DataError)(
                    f"data set {self.name!r}, split {part!r}, cannot be loaded from the hub: {first_line(error)}"
                ) from error
            if rows.column_names is not None:  # a stream may not know
                require_columns(self.name, rows.column_names, self.column)
            self._fetched[part] = rows
        return self._fetched[part]
