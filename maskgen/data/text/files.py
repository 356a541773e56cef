"""Texts in files: one file, a folder of documents, text8."""

from __future__ import annotations

import codecs
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from maskgen.core.errors import first_line
from maskgen.core.files import local_path, read_regular
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DATASETS, TEXT_SPLITS, DataError, TextSource
from maskgen.data.listing import LeftOut, Listing, is_hidden, list_files
from maskgen.data.split_folders import SplitFolders, find_splits

TEXT8_CHARACTERS = 100_000_000


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
        raise DataError(f"{name} cannot be read as UTF-8 text: {first_line(error)}") from None


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
            raise DataError(
                f"{self.path} cannot be read: {first_line(error)}; it should be text8 or text8.zip"
            ) from None
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
