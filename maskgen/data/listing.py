"""Files below a folder: which are data, which are left out and why. One rule for images, texts and archives.

Hidden files and folders (a name that begins with a dot, or `__MACOSX`) are never data. Endings are compared in lower
case. Links are followed, not upwards; every real folder is listed once, under its own path rather than that of a link,
so a cycle of links ends and nothing is counted twice. What is not a regular file (pipe, device, broken link) is never
opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DataError

Parts = tuple[str, ...]


@dataclass
class LeftOut:
    """What a listing passed over: files by ending, names that are no regular files, folders that are listed already."""

    endings: Counter[str] = field(default_factory=Counter)
    special: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def add(self, other: LeftOut) -> None:
        self.endings += other.endings
        self.special += other.special
        self.repeated += other.repeated

    def __str__(self) -> str:
        """One line; empty if nothing was left out."""
        parts = []
        if n := self.endings.total():
            most = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
            kinds = [f"{ending or 'no ending'} {count}" for ending, count in most]
            parts.append(f"{_counted(n, 'file')} ({first_few(kinds)})")
        if self.special:
            parts.append(f"{_counted(len(self.special), 'name')} of no regular file ({first_few(self.special)})")
        if self.repeated:
            links = _counted(len(self.repeated), "link")
            parts.append(f"{links} to a folder listed already or above ({first_few(self.repeated)})")
        return f"left out: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Listing:
    """Files relative to the listed folder, sorted, and what was left out."""

    files: list[Path]
    left_out: LeftOut


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a path has a hidden part: `.git/x.png`, `._a.png`, `__MACOSX/a.png`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def ending_of(name: str) -> str:
    """`.jpg` of `A.JPG`; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def folders_in(root: Path) -> list[str]:
    """Names of the folders in a folder and of links to folders, sorted; hidden ones left out.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden([entry.name]))
    except OSError as error:
        raise DataError(f"{printable(str(root))} cannot be listed: {error.strerror or error}") from None


def list_files(
    root: Path, endings: Collection[str], *, beside: Sequence[Path] = (), other: Collection[str] = ()
) -> Listing:
    """The files below a folder that have one of the endings.

    Args:
        root: the folder.
        endings: in lower case, with the dot.
        beside: folders that links inside `root` do not lead to: those of other splits, for one.
        other: endings of files that serve another purpose; they do not count as left out.

    Raises:
        DataError: a folder that cannot be read.
    """
    walk = _Walk(root, frozenset(endings), frozenset(other))
    walk.seen |= {
        identity for folder in (*beside, *root.resolve().parents) if (identity := _identity(folder)) is not None
    }
    walk.run()
    return Listing([Path(*parts) for parts in sorted(walk.found)], walk.left_out)


class _Walk:
    """State of a listing; paths are tuples of names, as objects take a minute for a million files."""

    def __init__(self, root: Path, endings: frozenset[str], other: frozenset[str]) -> None:
        self.root, self.endings, self.other = root, endings, other
        self.found: list[Parts] = []
        self.left_out = LeftOut()
        self.seen: set[tuple[int, int]] = set()
        self._links: list[Parts] = []

    def run(self) -> None:
        """Real folders first, then what links lead to, so that a folder has its own path."""
        self._descend(())
        while self._links:
            self._links.sort(reverse=True)
            link = self._links.pop()
            if _identity(self.root.joinpath(*link)) in self.seen:
                self.left_out.repeated.append(printable("/".join(link)))
            else:
                self._descend(link)

    def _descend(self, start: Parts) -> None:
        pending = [start]
        while pending:
            above = pending.pop()
            identity = _identity(self.root.joinpath(*above))
            if identity is None or identity in self.seen:
                continue
            self.seen.add(identity)
            pending += self._list(above)

    def _list(self, above: Parts) -> list[Parts]:
        """The real folders in a folder; its files and links are noted."""
        folders = []
        try:
            with os.scandir(self.root.joinpath(*above)) as entries:
                for entry in entries:
                    parts = (*above, entry.name)
                    if is_hidden([entry.name]):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(parts)
                    elif entry.is_dir():
                        self._links.append(parts)
                    else:
                        self._note(entry, parts)
        except OSError as error:
            folder = printable(str(self.root.joinpath(*above)))
            raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None
        return folders

    def _note(self, entry: os.DirEntry[str], parts: Parts) -> None:
        ending = ending_of(entry.name)
        if not entry.is_file():
            self.left_out.special.append(printable("/".join(parts)))
        elif ending in self.endings:
            self.found.append(parts)
        elif ending not in self.other:
            self.left_out.endings[printable(ending)] += 1


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if there is none."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)
