"""Texts: the King James Bible, files and folders, text8, data sets of the Hugging Face hub."""

from __future__ import annotations

import codecs
import hashlib
import re
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from maskgen.core.errors import DiskFull, first_line
from maskgen.core.files import is_disk_full, local_path, read_regular
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DATASETS, TEXT_SPLITS, DataError, TextSource, require_columns
from maskgen.data.content import folder_digest
from maskgen.data.listing import LeftOut, Listing, is_hidden, list_files
from maskgen.data.split_folders import SplitFolders, find_splits

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
    """A UTF-8 file, one text; or the text files below a folder, sorted by path, each a document.

    A byte order mark at the start of a file is not part of the text.

    Args:
        path: file or folder. Folders named after splits inside (`train`, `test`, `val`, `validation`, `dev` ..., in any
            case) are these splits; without one for validation, `validation_fraction` of the training documents is.
        length, stride, validation_fraction, test_fraction: see `TextSource`.
        endings: of the files of a folder that are documents, in any case.
    """

    locations: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(
        self,
        path: str,
        length: int = 256,
        stride: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        endings: tuple[str, ...] = (".txt",),
    ) -> None:
        super().__init__(length, stride, validation_fraction, test_fraction)
        self.path = local_path(path)
        if not path or not (self.path.is_file() or self.path.is_dir()):
            kind = "a pipe or a device" if path and self.path.exists() else "no file or folder"
            raise DataError(f"{path!r} is {kind}; give a UTF-8 text, or a folder of {first_few(endings)} files")
        self.endings = tuple(f".{ending.lower().lstrip('.')}" for ending in endings)
        self.name = printable(self.path.resolve().name)
        self.is_one_text = self.path.is_file()

    @cached_property
    def _text(self) -> str:
        return _read(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        if self.is_one_text:
            return ()
        left_out = str(self._listing.left_out)
        way = f"; data.endings='[{', '.join([*self.endings, '.md'])}]' would read .md" if ".md " in left_out else ""
        lines = [f"{left_out}{way}"] if left_out else []
        if self._splits_here is not None:
            here = self._splits_here
            roles = {"training": here.train, "validation": here.validation, "test": here.test}
            lines.append(", ".join(f"{printable(name)}/ for {role}" for role, name in roles.items() if name))
            if here.others:
                lines.append(
                    f"left out: {printable(first_few([f'{name}/' for name in here.others]))} beside the splits"
                )
        return tuple(lines)

    @cached_property
    def _splits_here(self) -> SplitFolders | None:
        names = (path.name for path in self.path.iterdir() if path.suffix.lower() in self.endings)
        return find_splits(self.path, has_loose=any(not is_hidden([name]) for name in names))

    @cached_property
    def _listing(self) -> Listing:
        """The documents: those of training, validation and test after one another where folders are splits."""
        here = self._splits_here
        parts = ["."] if here is None else [name for name in (here.train, here.validation, here.test) if name]
        files, left_out = [], LeftOut()
        self._n_documents: dict[str, int] = {}
        for part in parts:
            beside = [self.path / name for name in (".", *parts) if name != part]
            found = list_files(self.path / part, self.endings, beside=beside)
            files += [self.path / part / file for file in found.files]
            self._n_documents[part] = len(found.files)
            left_out.add(found.left_out)
        if not files:
            because = f" ({left_out})" if str(left_out) else ""
            raise DataError(f"{self.path} holds no {' or '.join(self.endings)} file{because}; choose data.endings")
        return Listing(files, left_out)

    def _size(self) -> int:
        return len(self._text if self.is_one_text else self._listing.files)

    def _range(self, split: str) -> tuple[int, int]:
        here = None if self.is_one_text else self._splits_here
        if here is None:
            return super()._range(split)
        self._check(split)
        size, n = self._size(), self._n_documents
        n_test = n.get(here.test, 0)
        n_validation = (
            n[here.validation] if here.validation else int(n[here.train] * self.fractions["validation_fraction"])
        )
        ends = (0, size - n_test - n_validation, size - n_test, size)
        index = TEXT_SPLITS.index(split)
        return ends[index], ends[index + 1]

    def _part(self, first: int, last: int) -> Iterator[str]:
        if self.is_one_text:
            yield self._text[first:last]
        else:
            yield from map(_read, self._listing.files[first:last])


def _read(file: Path) -> str:
    """Every character as it is, line ends too, without a byte order mark."""
    name = printable(str(file))
    try:
        raw = read_regular(file)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "it is UTF-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else str(error)
        raise DataError(f"{name} cannot be read as UTF-8 text: {kind}; save it as UTF-8") from None
    except (OSError, MemoryError) as error:
        raise DataError(f"{name} cannot be read as UTF-8 text: {error}") from None


@DATASETS.register("text8")
class Text8(TextSource):
    """text8 (M. Mahoney): 10^8 letters a to z and spaces of Wikipedia; 90 / 5 / 5 million characters.

    Args:
        path: the file `text8`, or `text8.zip` as its web site gives it.
        length, stride: see `TextSource`.
    """

    locations: ClassVar[tuple[str, ...]] = ("path",)
    name = "text8"
    is_one_text = True

    def __init__(self, path: str, length: int = 256, stride: int | None = None) -> None:
        super().__init__(length, stride)
        self.path = local_path(path)
        if not self.path.is_file():
            raise DataError(f"no file {path}; get text8.zip from https://mattmahoney.net/dc/textdata.html")

    @cached_property
    def _text(self) -> str:
        try:
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive, archive.open("text8") as member:
                    raw = member.read(TEXT8_CHARACTERS + 1)
            else:
                raw = read_regular(self.path, TEXT8_CHARACTERS)
        except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
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
            known = (folder_digest(self.folder), self.config)
        return hashlib.sha256(repr((known, part, places, self.column)).encode()).hexdigest()

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
