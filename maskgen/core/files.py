"""Files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from maskgen.core.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk or quota."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user wrote; `~` and `~name` are expanded.

    Raises:
        UserError: it holds a NUL character, or names a user whose home is unknown.
    """
    if "\0" in os.fspath(text):
        raise UserError(f"{os.fspath(text)!r} is no path: it holds a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{os.fspath(text)!r} is no path: there is no such user, or the user has no home") from None


def require_writable(folder: Path, name: str) -> None:
    """Make a folder and see that files can be written in it; `name` is what the user called it.

    Raises:
        UserError: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {name!r}: {error.strerror or error}") from None


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it takes its name when the block ends well, and leaves nothing when it does not.

    A reader sees the old file or the new one, never a part. An error of the disk names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, tree: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic(path) as file:
        file.write(json.dumps(tree, indent=1).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
