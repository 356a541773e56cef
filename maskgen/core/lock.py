"""A lock on a directory with one writer; it records process and host and is held as long as the process lives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from maskgen.core.errors import UserError
from maskgen.core.files import open_regular, parse_json, read_regular

NAME = ".lock"
SILENT = 300.0
"""Seconds without a touch of its lock after which a holder on another host counts as dead."""

ORPHANS = 15.0
"""Seconds within which data workers end after their parent was killed; they share its lock until then."""

MOST = 2**16
"""Bytes of a lock file that are read."""


class RunLock:
    """Context in which this process alone writes a directory (of a run, of a benchmark).

    The kernel releases the lock when the process dies, so a killed run leaves nothing to clean up. A holder touches the
    file regularly, since another host cannot see whether it is alive.

    Raises:
        UserError: on entering, another process holds it, or the lock file is a link or no regular file.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._file: IO[str] | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> RunLock:
        file = _open(self.path)
        holder = _read(self.path)
        if not _locked(file, holder):
            file.close()
            raise UserError(_refusal(self.path, holder))
        is_fresh = time.time() - self.path.stat().st_mtime < SILENT
        if holder and holder.get("host") != socket.gethostname() and is_fresh:
            file.close()
            raise UserError(_refusal(self.path, holder))
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        file.flush()
        self._file = file
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def _touch(self) -> None:
        while not self._is_over.wait(SILENT / 5):
            with suppress(OSError):  # a file system that hangs now may answer the next time
                os.utime(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._file is not None:
            self._file.truncate(0)  # the file stays: removing it would let two processes lock two files of one name
            self._file.close()


def _open(path: Path) -> IO[str]:
    """The lock file itself: a link would have another file truncated."""
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow=False)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR):
            raise
        reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(f"{path} cannot serve as a lock: {reason}; remove it") from None
    return os.fdopen(descriptor, "a+", encoding="utf-8")


def _locked(file: IO[str], holder: dict[str, object]) -> bool:
    """Lock a file; waits while data workers of a dead holder end."""
    deadline = time.monotonic() + ORPHANS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if _lives(holder) or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


def _lives(holder: dict[str, object]) -> bool:
    """Whether the process is alive, as far as this host can know."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_held(directory: Path) -> bool:
    """Whether a process is writing a directory."""
    path = directory / NAME
    holder = _read(path)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return time.time() - path.stat().st_mtime < SILENT
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _read(path: Path) -> dict[str, object]:
    try:
        holder = parse_json(read_regular(path, MOST) or b"{}")
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _refusal(path: Path, holder: dict[str, object]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return f"{path.parent} is being written by {who}; stop it first, or choose another --output"
