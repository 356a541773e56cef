"""Reading and writing files: paths from users, atomic writes, permissions, bounded reads, JSON."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import socket
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from maskgen.core.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or an exhausted quota."""

MOST_JSON = 2**28
"""Bytes of a JSON file that `read_json` accepts."""

STALE = 24 * 3600.0
"""Seconds after which the draft of an unreachable writer counts as abandoned; a living writer changes it often."""

_DRAFT = re.compile(r"\..+\.(?:(?P<host>[0-9a-f]{8})-)?(?P<pid>\d+)(?:-\d+)?")
_numbers = itertools.count()


def local_path(text: str | Path) -> Path:
    """A path given by a user, with `~` and `~name` expanded.

    Raises:
        UserError: a NUL character, or the home folder of a user that does not exist.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r} is no path: it contains a NUL character")
    expanded = os.path.expanduser(text)
    if expanded == str(text) and expanded.startswith("~"):
        user = expanded.split("/")[0][1:]
        raise UserError(f"{text}: there is no user {user!r}; write ./{text} for a file of that name")
    return Path(expanded)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, reports a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def require_writable(folder: Path, name: str) -> None:
    """Create a folder and check that files can be written in it; `name` is the user's spelling of it.

    Raises:
        UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {name!r}: {error.strerror or error}") from None


@contextmanager
def atomic(path: Path, *, is_flushed: bool = True) -> Iterator[IO[bytes]]:
    """A file open for writing that replaces `path` when the block ends without an error; else nothing changes.

    Readers see the old file or the new one, never a part. The draft beside it is a new file of this process: a link of
    its name is not followed, and permissions obey the umask. `is_flushed` waits for the disk. An `OSError` names the
    file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{next(_numbers)}")
    try:
        draft.unlink(missing_ok=True)  # of a dead process that had this number
        with draft.open("xb") as file:
            yield file
            file.flush()
            if is_flushed:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def remove_stale_drafts(folder: Path) -> None:
    """Delete the drafts that killed writers of `atomic` left in a folder; those of living writers stay."""
    with suppress(OSError):
        for path in folder.iterdir():
            found = _DRAFT.fullmatch(path.name)
            if found and _is_abandoned(path, found["host"], int(found["pid"])):
                path.unlink(missing_ok=True)


def _is_abandoned(draft: Path, host: str | None, pid: int) -> bool:
    if host in (None, _host()) and pid != os.getpid():
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass
    return time.time() - draft.lstat().st_mtime > STALE


def _host() -> str:
    """Eight hexadecimal digits for this host."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def obey_umask(file: Path) -> None:
    """Give a file the permissions of a newly created one, where a library created it readable by its owner only."""
    probe = file.with_name(f".mode.{_host()}-{os.getpid()}-{next(_numbers)}")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        file.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode))
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = True) -> int:
    """Descriptor of a regular file; never waits for the other end of a pipe.

    Args:
        flags: as for `os.open`; with `O_CREAT` permissions obey the umask.
        follow: false refuses symbolic links, and files that have another name as well (hard links).

    Raises:
        OSError: no such file, a link that is not followed, or a device, pipe or folder.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), 0o666)
    facts = os.fstat(descriptor)
    fault = "" if stat.S_ISREG(facts.st_mode) else "not a regular file"
    if not follow and facts.st_nlink > 1:
        fault = "has another name as well (a hard link)"
    if fault:
        os.close(descriptor)
        raise OSError(errno.EINVAL, fault, str(path))
    return descriptor


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is a device or a pipe, or has more than `most` bytes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than the {most:,} that are read", str(path))
        return file.read() if most is None else file.read(most + 1)


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers, from 1, and texts of the lines of a UTF-8 file that are not blank.

    Raises:
        OSError, ValueError: no such file, no text in it.
    """
    text = read_regular(path).decode("utf-8-sig")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError("there is nothing in it")
    return lines


def write_json(path: Path, tree: object) -> None:
    """Write JSON atomically."""
    with atomic(path) as file:
        file.write(json.dumps(tree, indent=1).encode() + b"\n")


def parse_json(text: str | bytes) -> Any:
    """JSON from outside.

    Raises:
        ValueError: not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read or is too large.
        ValueError: it holds no JSON object.
    """
    tree = parse_json(read_regular(path, MOST_JSON))
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no JSON object")
    return tree
