"""Signals of a training run: finish the step, save, and exit with the code of the signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVING = signal.SIGUSR1
ECHO = 1.0
"""Seconds in which a second signal counts as the first: `torchrun` repeats what the process group received."""


class Stopped(SystemExit):
    """A signal ended the run, which has saved: exit code 143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum, self.step = signum, step


class _Interrupted(BaseException):
    """Ends what `attempt` was given."""


class Signals:
    """Context in which SIGTERM, SIGINT and SIGHUP end a run after the step, a second one at once; SIGUSR1 saves.

    Handlers can only be installed in the main thread; in other threads signals keep their effect. A SIGHUP that is
    ignored (`nohup`) stays ignored.

    Attributes:
        is_deferred: an end waits for the step to be finished; false before the first step.
        stop: the signal that ends the run, 0 if there was none.
        is_saving: a checkpoint is requested.
    """

    def __init__(self) -> None:
        self.is_deferred = False
        self.stop = 0
        self.is_saving = False
        self._is_interruptible = False
        self._since = 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            handlers = {**dict.fromkeys(STOPPING, self._on_stop), SAVING: self._on_save}
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
                del handlers[signal.SIGHUP]
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
            os._exit(128 + number)  # drafts have other names and are removed by the next run
        self.stop, self._since = number, time.monotonic()
        if not self.is_deferred:
            raise Stopped(number, 0)
        if self._is_interruptible:
            raise _Interrupted

    def _on_save(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_saving = True

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result of work that a stop may interrupt; None if it was interrupted."""
        if self.stop:
            return None
        try:
            self._is_interruptible = True
            return work()
        except _Interrupted:
            return None
        finally:
            self._is_interruptible = False
