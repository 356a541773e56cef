"""Output that may lose its reader: a closed pipe or terminal ends no training."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors of writing where nothing reads any more: a closed pipe, a closed terminal, a closed file."""


class Surviving:
    """A text stream that goes silent, instead of raising, once its reader is gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._survived():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._survived():
            self._stream.flush()

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._silence()
        except ValueError as error:  # a file object that was closed
            if "closed file" not in str(error):
                raise

    def _silence(self) -> None:
        """Write to /dev/null from now on, so that what is buffered can be flushed at the end."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def surviving_output() -> Iterator[None]:
    """Context in which standard output and error go silent if their reader goes away."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (one if isinstance(one, Surviving) else _surviving(one) for one in before)
    try:
        yield
    finally:
        for one in (sys.stdout, sys.stderr):
            one.flush()
        sys.stdout, sys.stderr = before


def _surviving(stream: IO[str]) -> Any:
    return Surviving(stream)
