"""The construction of a network from untrusted sizes, bounded by the weights that are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from maskgen.checkpoints.manifest import CheckpointError
from maskgen.core.errors import first_line
from maskgen.nn.counting import TooLargeError, counted

MORE_PARTS, MORE_ELEMENTS = 2_000, 2**28
"""Modules, parameters and buffers, and numbers in them, that a network may register beyond `PER_STORED` for each stored
tensor and number."""

PER_STORED = 16
"""A parameter may be registered again, by a list of modules or in place of another; a buffer need not be stored."""


@contextmanager
def bounded_build(stored: Mapping[str, Tensor] | None, home: Path) -> Iterator[None]:
    """Context in which a network is built that has about as many parts and numbers as are stored of it.

    Sizes in a recipe may need any amount of memory and time; the stored weights bound what is built.

    Args:
        stored: its tensors, by shape; None bounds nothing.
        home: the checkpoint, for the message.

    Raises:
        CheckpointError: the network has far more, or more than memory can hold.
    """
    if stored is None:
        yield
        return
    n_elements = sum(value.numel() for value in stored.values())
    try:
        with counted(MORE_PARTS + PER_STORED * len(stored), MORE_ELEMENTS + PER_STORED * n_elements):
            yield
    except TooLargeError as error:
        reason = "sizes in its recipe or description do not belong to its weights, the network would be far larger"
        raise _refusal(home, n_elements, reason) from error
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise _refusal(home, n_elements, first_line(error)) from error


def _refusal(home: Path, n_elements: int, reason: str) -> CheckpointError:
    return CheckpointError(f"{home}: no network of its sizes can be built for {n_elements:,} stored numbers: {reason}")
