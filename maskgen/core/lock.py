"""One writer a directory: a lock with process and host, held as long as the process lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from maskgen.core.errors import UserError

NAME = ".lock"
SILENT = 300.0
"""Seconds after which a holder on another host that has not touched its lock is taken for dead."""

ORPHANS = 15.0
"""Seconds in which data workers end whose parent was killed; they share its lock until then."""


class RunLock:
    """Context in which a directory is this process's: a run's, a benchmark's.

    The kernel lets go of it when the process dies, so a killed run leaves nothing to clean up. A holder on another
    host, whose death this kernel cannot know, touches the file every so often.

    Raises:
        UserError: on entering, another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._file: IO[str] | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> RunLock:
        file = self.path.open("a+", encoding="utf-8")
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


def _locked(file: IO[str], holder: dict[str, Any]) -> bool:
    """Lock a file; the data workers of a dead holder are given time to see that it is dead."""
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


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process is alive, as far as this host can know."""
    if holder.get("host") != socket.gethostname() or "pid" not in holder:
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_held(directory: Path) -> bool:
    """Whether a run in a directory is going on."""
    path = directory / NAME
    holder = _read(path)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return time.time() - path.stat().st_mtime < SILENT
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        holder: dict[str, Any] = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        return {}
    return holder


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return f"{path.parent} is being written by {who}; stop it first, or choose another --output"
