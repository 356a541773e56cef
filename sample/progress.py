"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(name: str) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """A function that shows a bar over batches."""
    return lambda batches: iter(tqdm(batches, name, unit="batch", disable=None))
