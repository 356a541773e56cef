"""Batches of rows: batch b is a pure function of (seed, b), so a run resumes at the batch it stopped before."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from maskgen.core.errors import first_line
from maskgen.core.rng import Rng, fold
from maskgen.data.base import DataError, ImageSplit

T = TypeVar("T")


class Rows(Protocol):
    """A data set that is read many rows at a time: images with labels, or tokens with labels."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int], /) -> tuple[Tensor, Tensor]:
        """x_0 (B, ...) and labels (B,) int64."""


@runtime_checkable
class Shuffled(Protocol):
    """Rows with an order of their own, such as those of shards that are read one after the other."""

    def permute(self, seed: int, epoch: int, n: int) -> Tensor:
        """(n,) int64, the order of the rows in an epoch."""


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """(n,) int64: the order of the rows in an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(fold(seed, "order", epoch)))


class CounterSampler(Sampler[list[int]]):
    """Row indices of batch `start`, `start` + 1, ... without end.

    Batch b covers the B positions from `offset` + b B on of the concatenated permutations of the epochs: every batch is
    full, also where an epoch ends inside it or the data set is smaller than a batch. `offset` counts the rows of
    earlier batches of another size. Rank r of w takes the r-th of w equal slices. `permute(seed, epoch, n)` returns the
    order of an epoch; data that are read in sequence replace it.

    Raises:
        ValueError: no rows, a batch that ranks cannot share equally, or a number out of range.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, start: int = 0, offset: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if n < 1:
            raise ValueError("the data set has no rows; a batch needs at least one")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), got {rank}")
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"batch_size must be a positive multiple of the {world} processes, got {batch_size}")
        if min(start, offset) < 0:
            raise ValueError(f"start and offset must be at least 0, got {start} and {offset}")
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.start, self.offset = start, offset
        self.permute: Callable[[int, int, int], Tensor] = permutation
        self._held: tuple[int, Tensor] = (-1, torch.empty(0))

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.indices, itertools.count(self.start))

    def indices(self, batch: int) -> list[int]:
        """This rank's rows of a batch."""
        share = self.batch_size // self.world
        first = self.offset + batch * self.batch_size + self.rank * share
        last = first + share
        rows: list[int] = []
        while first < last:
            epoch, offset = divmod(first, self.n)
            part = self._order(epoch)[offset : offset + last - first].tolist()
            rows += part
            first += len(part)
        return rows

    def _order(self, epoch: int) -> Tensor:
        if self._held[0] != epoch:
            self._held = (epoch, self.permute(self.seed, epoch, self.n))
        return self._held[1]


def batches(
    dataset: Rows,
    order: CounterSampler,
    workers: int = 0,
    is_ending: Callable[[], bool] = lambda: False,
    timeout: float = 0.0,
) -> Generator[tuple[Tensor, Tensor]]:
    """x_0 (B / world, ...) and labels (B / world,) of the batches of `order`, without end.

    `workers` processes read ahead; batches do not depend on their number. They end with the generator (`close`). Once
    `is_ending`, a dead one is not named.

    Raises:
        DataError: a sample that cannot be read, or that kills the worker that reads it; the message names it. Or a
            worker that does not answer for `timeout` seconds (0 waits for ever).
    """
    with _opened(dataset, order, workers, timeout) as loader:
        for batch in itertools.count(order.start):
            try:
                rows = next(loader)
            except DataError as error:
                _, _, traceback = str(error).partition("Original Traceback")  # of a worker; its last line is the error
                if not traceback:
                    raise
                said = traceback.splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")
                raise DataError(said) from None
            except (RuntimeError, ConnectionError, EOFError) as error:
                if "DataLoader timed out" in str(error):
                    raise DataError(_hang(timeout)) from None
                if not _is_of_a_dead_worker(error):
                    raise
                said = first_line(error)
                if is_ending():
                    raise DataError(said) from None
                suspects = [order.indices(batch + ahead) for ahead in range(2 * workers + 1)]
                raise DataError(_obituary(dataset, suspects, said)) from None
            yield rows


def _hang(timeout: float) -> str:
    return (
        f"no batch from the data workers for {timeout:g} s: a file system or a sample hangs; raise "
        "train.worker_timeout, or set train.workers=0 to see where"
    )


def _is_of_a_dead_worker(error: Exception) -> bool:
    """Whether the loader reports a dead worker, or memory that a worker had shared is gone."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    return "Original Traceback" not in str(error)  # what a living worker raises comes with its traceback


@contextmanager
def _opened(
    dataset: Rows, order: Iterable[list[int]], workers: int, timeout: float = 0.0
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Context of an iterator over batches; its worker processes end with it, whoever still refers to the iterator."""
    data: Any = dataset
    batches: Any = order
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=_identity,  # __getitems__ has collated already
        num_workers=workers,
        timeout=timeout if workers else 0,
        generator=torch.Generator(),  # else the loader draws from the global stream
        worker_init_fn=_outlive_signals,
    )
    before = set(multiprocessing.active_children())
    rows: Any = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # By PyTorch's handler the death of a worker is raised wherever the main process is, in the midst of a step or
        # of saving. Without, it is found where the worker's rows are waited for, some seconds later.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    started = set(multiprocessing.active_children()) - before
    try:
        yield rows
    finally:
        if workers:
            rows._shutdown_workers()  # PyTorch does it when the iterator is freed, which a traceback may prevent
        for worker in started:
            worker.kill()  # one that hangs ignores a request to end
            worker.join()


def _outlive_signals(worker: int) -> None:  # noqa: ARG001
    """Ignore signals to the process group: the main process still needs its workers to end well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The second one ends a worker: that is how the main process ends one which does not answer.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _obituary(dataset: Rows, suspects: Sequence[list[int]], said: str) -> str:
    """Which sample killed a worker: the batches it may have been at are read again, each by a worker of its own."""
    for rows in suspects:
        if not _survives(dataset, rows):
            killers = [row for row in rows if not _survives(dataset, [row])]
            if killers:
                name = dataset.name_of(killers[0]) if isinstance(dataset, ImageSplit) else f"row {killers[0]}"
                return f"a data worker died reading {name}: remove or mend it ({said})"
    return f"a data worker died, but no sample does it again: out of memory? lower train.workers ({said})"


def _survives(dataset: Rows, rows: list[int]) -> bool:
    try:
        with _opened(dataset, [rows], 1) as loader:
            next(loader)
    except (RuntimeError, ConnectionError, EOFError):
        return False
    return True


def in_order(dataset: Rows, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every row once, in order; the last batch may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for first in range(0, len(dataset), batch_size):
        yield dataset.__getitems__(range(first, min(first + batch_size, len(dataset))))


def flip(images: Tensor, rng: Rng) -> Tensor:
    """(B, C, H, W) -> same, each image mirrored left to right with probability 1/2.

    With `Rng.stream(seed, "flip", batch, rank)` a resumed run mirrors the same images.
    """
    is_flipped = rng.uniform(images.shape[:1], device=images.device) < 0.5
    return torch.where(is_flipped[:, None, None, None], images.flip(-1), images)


def _identity(batch: T) -> T:
    return batch
