"""Texts: the King James Bible, files, text8, data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from maskgen.core.errors import first_line
from maskgen.data.base import DATASETS, DataError, TextSource, require_columns, shards_in

TEXT8_CHARACTERS = 100_000_000
_VERSE = re.compile(r"^[1-3]?[A-Za-z]+\d+:\d+ ", re.MULTILINE)


@DATASETS.register("kjv")
class KingJames(TextSource):
    """The King James Bible as Debian's program `bible` (package bible-kjv) prints it.

    4,137,850 characters, 63 different ones: letters (no capital X), newline, space and ``!"'(),-.:;?``. 31,102 verses
    in the order of the books, one a line, without the reference that the program puts before each. Books and chapters
    have no headings.
    """

    name = "kjv"
    is_one_text = True

    def _size(self) -> int:
        return len(_king_james())

    def _part(self, first: int, last: int) -> Iterator[str]:
        yield _king_james()[first:last]


def _king_james() -> str:
    program = shutil.which("bible")
    if program is None:
        raise DataError("the data set kjv is printed by the program `bible`, which is not here: apt install bible-kjv")
    return _verses(program)


@cache
def _verses(program: str) -> str:
    # -f turns formatting off. The program looks for its text in the working directory first: not in the user's.
    command = [program, "-f", "Gen1:1-Rev22:21"]
    try:
        printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, cwd="/").stdout
        text = printed.decode("ascii")
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
        raise DataError(f"{program} did not print the Bible: {error}; apt install --reinstall bible-kjv") from None
    verses, n_references = _VERSE.subn("", text)
    if not n_references or n_references != len(text.splitlines()):
        raise DataError(f"{program} prints other lines than `Ge1:1 In the ...`; kjv needs the one of bible-kjv")
    return verses


@DATASETS.register("text_file")
class TextFile(TextSource):
    """A UTF-8 file, one text; or the .txt files below a folder, sorted by path, each a document.

    Args:
        path: file or folder.
        length, stride, validation_fraction, test_fraction: see `TextSource`.
    """

    def __init__(
        self,
        path: str,
        length: int = 256,
        stride: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        super().__init__(length, stride, validation_fraction, test_fraction)
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise DataError(f"no file or folder {path}; give a UTF-8 text, or a folder of .txt files")
        self.name = self.path.resolve().name
        self.is_one_text = self.path.is_file()

    @cached_property
    def _text(self) -> str:
        return _read(self.path)

    @cached_property
    def _files(self) -> list[Path]:
        relative = (file.relative_to(self.path) for file in self.path.rglob("*.txt") if file.is_file())
        files = [self.path / file for file in sorted(relative)]
        if not files:
            raise DataError(f"{self.path} holds no .txt file")
        return files

    def _size(self) -> int:
        return len(self._text if self.is_one_text else self._files)

    def _part(self, first: int, last: int) -> Iterator[str]:
        if self.is_one_text:
            yield self._text[first:last]
        else:
            yield from map(_read, self._files[first:last])


def _read(file: Path) -> str:
    """Every character as it is; line ends too."""
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from None


@DATASETS.register("text8")
class Text8(TextSource):
    """text8 (M. Mahoney): 10^8 letters a to z and spaces of Wikipedia; 90 / 5 / 5 million characters.

    Args:
        path: the file `text8`, or `text8.zip` as its web site gives it.
        length, stride: see `TextSource`.
    """

    name = "text8"
    is_one_text = True

    def __init__(self, path: str, length: int = 256, stride: int | None = None) -> None:
        super().__init__(length, stride)
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"no file {path}; get text8.zip from https://mattmahoney.net/dc/textdata.html")

    @cached_property
    def _text(self) -> str:
        try:
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    raw = archive.read("text8")
            else:
                raw = self.path.read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} cannot be read: {error}; it should be text8 or text8.zip") from None
        strange = raw.translate(None, b" abcdefghijklmnopqrstuvwxyz")
        if len(raw) != TEXT8_CHARACTERS or strange:
            raise DataError(
                f"{self.path} is not text8: {len(raw):,} bytes, {len(strange):,} of them no letter a to z or space; "
                f"text8 has {TEXT8_CHARACTERS:,}. For another text use {{type: text_file}}"
            )
        return raw.decode("ascii")

    def _size(self) -> int:
        return len(self._text)

    def _part(self, first: int, last: int) -> Iterator[str]:
        yield self._text[first:last]


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
        revision: branch, tag or commit; a commit keeps the data the same for good. With streaming nothing else
            tells stored tokens that the data have changed.
        streaming: read documents over the network each time, those before a split too; only their tokens are stored.
        n_documents: use the first so many documents of the training split only.
        length, stride, validation_fraction, test_fraction: see `TextSource`; test_fraction is not used with test_split.
    """

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
        self.folder = Path(name).expanduser()
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
        self._fetched: dict[str, Any] = {}

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
            known += tuple(shards_in(self.folder))
        return hashlib.sha256(repr((known, part, places, self.column)).encode()).hexdigest()

    def _size(self) -> int:
        rows = self._rows(self.train_split)
        if not self.streaming:
            return min(len(rows), self.n_documents or len(rows))
        known = (rows.info.splits or {}).get(self.train_split)
        sizes = [n for n in (getattr(known, "num_examples", None), self.n_documents) if n]
        if not sizes:
            raise DataError(f"data set {self.name!r} does not say how many documents it has; give n_documents")
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
                raise DataError(
                    f"data set {self.name!r}, split {part!r}, cannot be had from the hub: {first_line(error)}"
                ) from error
            if rows.column_names is not None:  # a stream may not know
                require_columns(self.name, rows.column_names, self.column)
            self._fetched[part] = rows
        return self._fetched[part]
