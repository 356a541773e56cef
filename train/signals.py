"""What a run does when it is told to stop: finish the step, save, and say so by its exit code."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
STOPPING = (signal.SIGTERM, signal.SIGINT)
SAVING = signal.SIGUSR1
ECHO = 1.0
"""Seconds in which a second signal is the first one's: `torchrun` passes on what the process group has got already."""


class Stopped(SystemExit):
    """The run was told to stop, and has saved: exit code 143 for SIGTERM, 130 for SIGINT, as shells count them."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum, self.step = signum, step


class _Interrupted(BaseException):
    """Ends what `attempt` was given."""


class Signals:
    """Context in which SIGTERM and SIGINT ask for an end, a second one ends at once, SIGUSR1 asks for a checkpoint.

    Handlers can only stand in the main thread; elsewhere signals do what they did.

    Attributes:
        is_deferred: an end waits for the step to be finished; before there are steps it does not.
        stop: the signal that asked for an end, 0 if none did.
        is_saving: a checkpoint was asked for.
    """

    def __init__(self) -> None:
        self.is_deferred = False
        self.stop = 0
        self.is_saving = False
        self._is_interruptible = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            handlers = {**dict.fromkeys(STOPPING, self._on_stop), SAVING: self._on_save}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.stop and time.monotonic() - self._since < ECHO:
            return
        if self.stop:
            os._exit(128 + number)  # at once: what is being written has another name and is left for the next run
        self.stop, self._since = number, time.monotonic()
        if not self.is_deferred:
            raise Stopped(number, 0)
        if self._is_interruptible:
            raise _Interrupted

    def _on_save(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_saving = True

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The answer of work that a stop may cut short; None if it was."""
        if self.stop:
            return None
        try:
            self._is_interruptible = True
            return work()
        except _Interrupted:
            return None
        finally:
            self._is_interruptible = False
