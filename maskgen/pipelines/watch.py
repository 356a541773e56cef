"""Following a decoding step by step: progress bars, the unmasking order, and steps as an iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.pipelines.arguments import wrong_type
from maskgen.processes import is_mask
from maskgen.samplers.masked.loop import OnStep

Progress = bool | None | Callable[[int, int], None]
"""True shows a bar, False none, None one in a terminal only; a function is called with (steps done, steps in all)."""


class ProgressBar:
    """Reports the steps of a decoding in `n_batches` batches, as `progress` says; a context manager.

    Raises:
        ArgumentTypeError: `progress` is neither a bool, None nor a function.
    """

    def __init__(self, progress: Progress, n_batches: int = 1) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise wrong_type("progress", progress, "True, False or a function of (steps done, steps in all)")
        self._call = progress if callable(progress) else None
        is_hidden = True if self._call is not None or progress is False else (None if progress is None else False)
        self._bar = tqdm(unit="step", desc="sampling", dynamic_ncols=True, disable=is_hidden)
        self._n_batches, self._n_done = n_batches, 0

    def __call__(self, done: int, total: int, x_t: Tensor) -> None:  # noqa: ARG002 - an `OnStep`
        self._n_done += 1
        self._bar.total = self._n_batches * total
        self._bar.update()
        if self._call is not None:
            self._call(self._n_done, self._n_batches * total)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()


class UnmaskingOrder:
    """At which step each token of a batch was unmasked: an `OnStep` for masked decoding.

    Args:
        mask_id: the id of [MASK] among discrete tokens.
        known: (B, L) int64 of given tokens, -1 elsewhere, or (B, L, D) float, NaN elsewhere; None if none is given.
    """

    def __init__(self, mask_id: int, known: Tensor | None) -> None:
        self._mask_id = mask_id
        self._was_visible = None if known is None else ~is_mask(known, -1)
        self._steps: Tensor | None = None

    def __call__(self, done: int, total: int, x_t: Tensor) -> None:  # noqa: ARG002 - an `OnStep`
        is_visible = ~is_mask(x_t, self._mask_id)  # (B, L)
        if self._steps is None:
            self._steps = torch.zeros(is_visible.shape, dtype=torch.int64, device=x_t.device)
        before = torch.zeros_like(is_visible) if self._was_visible is None else self._was_visible.to(x_t.device)
        self._steps = torch.where(is_visible & ~before, done, self._steps)
        self._was_visible = is_visible

    def steps(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 on the CPU: the step, from 1, that unmasked each of the tokens last; 0 for given tokens."""
        return torch.zeros(tokens.shape[:2], dtype=torch.int64) if self._steps is None else self._steps.cpu()


def both(*watchers: OnStep | None) -> OnStep | None:
    """One `OnStep` that calls several in order; None if there is none."""
    calls = [watcher for watcher in watchers if watcher is not None]
    if not calls:
        return None

    def on_step(done: int, total: int, x_t: Tensor) -> None:
        for call in calls:
            call(done, total, x_t)

    return on_step


class _Abandoned(BaseException):
    """Raised inside a decoding whose reader has left."""


class _Worker(threading.Thread):
    """Runs a decoding; after each step it puts an event and waits until it may resume."""

    def __init__(self, decode: Callable[[OnStep], Tensor]) -> None:
        super().__init__(name="maskgen-stream", daemon=True)
        self._decode = decode
        self.events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self.resume, self.is_abandoned = threading.Semaphore(0), False

    def run(self) -> None:
        try:
            self.events.put(("end", self._decode(self._on_step)))
        except BaseException as error:  # handed to the reader, in whose thread it is raised
            self.events.put(("error", error))

    def _on_step(self, done: int, total: int, x_t: Tensor) -> None:  # noqa: ARG002 - an `OnStep`
        self.events.put(("step", (done, x_t.clone())))
        self.resume.acquire()
        if self.is_abandoned:
            raise _Abandoned


def steps_of(decode: Callable[[OnStep], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(steps done, tokens) after each step of a decoding that reports to an `OnStep`.

    The decoding runs in a thread of its own, one step at a time: it waits until the next step is requested, and ends
    when the iterator is closed.

    Args:
        decode: runs the decoding with the given `OnStep`; returns its tokens, which are yielded as step 0 where
            there was nothing to decode.
    """
    worker, n_steps = _Worker(decode), 0
    worker.start()
    try:
        while True:
            kind, value = worker.events.get()
            if kind == "error":
                raise value
            if kind == "end":
                if not n_steps:
                    yield 0, value
                return
            n_steps += 1
            yield value
            worker.resume.release()
    finally:
        worker.is_abandoned = True
        worker.resume.release()
        worker.join()
