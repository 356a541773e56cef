"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from tqdm import tqdm

Batches = Iterator[tuple[int, Tensor]]


def progress_bar(name: str) -> Callable[[Batches], Batches]:
    """A function that shows a bar over batches of images."""
    return lambda batches: iter(tqdm(batches, name, unit="batch", disable=None))
