"""The error that ended one of several processes, passed to the others: their own errors only report a lost peer."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import DistError

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic

PATIENCE = 2.0
"""Seconds in which a failed process writes its error; its connections may close before."""

COMMUNICATION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


class ProcessFailed(UserError):
    """Another process of the run has failed; the message is the first line of its error."""

    code = 1


def forget_failures(directory: Path) -> None:
    """Remove the error files of an earlier run. Requires the lock of the directory."""
    for path in directory.glob(".error-rank*"):
        path.unlink(missing_ok=True)


def share_failure(directory: Path, rank: int, error: Exception) -> Exception:
    """Write an error for the other processes; a lost connection becomes the error of the process that failed."""
    if isinstance(error, RuntimeError) and _is_communication(error):
        return _error_of_another(directory, rank) or error
    with suppress(OSError), atomic(directory / f".error-rank{rank}") as file:  # a full disk is the error itself
        file.write(first_line(error).encode())
    return error


def _is_communication(error: RuntimeError) -> bool:
    return isinstance(error, DistError) or any(sign in str(error).lower() for sign in COMMUNICATION)


def _error_of_another(directory: Path, rank: int) -> ProcessFailed | None:
    deadline = time.monotonic() + PATIENCE
    while True:
        for path in sorted(directory.glob(".error-rank*")):
            number = path.name.removeprefix(".error-rank")
            if number != str(rank):
                return ProcessFailed(f"process {number} failed: {path.read_text(encoding='utf-8')}")
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
