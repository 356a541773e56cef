"""What ended a process of several, told to the others: their own errors say only that it is gone."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import DistError

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic

PATIENCE = 2.0
"""Seconds in which a process that has failed says why; its connections may close before."""

EXCHANGE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


class ProcessFailed(UserError):
    """Another process of the run has failed; the message is the first line of its error."""

    code = 1


def forget_failures(directory: Path) -> None:
    """Remove what processes of an earlier run said. Only for who holds the directory's lock."""
    for path in directory.glob(".error-rank*"):
        path.unlink(missing_ok=True)


def tell_failure(directory: Path, rank: int, error: Exception) -> Exception:
    """Leave an error for the other processes; one of the exchange becomes the error that another process has left."""
    if isinstance(error, RuntimeError) and _is_of_exchange(error):
        return _left_by_another(directory, rank) or error
    with suppress(OSError), atomic(directory / f".error-rank{rank}") as file:  # a full disk is what the error says
        file.write(first_line(error).encode())
    return error


def _is_of_exchange(error: RuntimeError) -> bool:
    return isinstance(error, DistError) or any(sign in str(error).lower() for sign in EXCHANGE)


def _left_by_another(directory: Path, rank: int) -> ProcessFailed | None:
    deadline = time.monotonic() + PATIENCE
    while True:
        for path in sorted(directory.glob(".error-rank*")):
            number = path.name.removeprefix(".error-rank")
            if number != str(rank):
                return ProcessFailed(f"process {number} failed: {path.read_text(encoding='utf-8')}")
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
