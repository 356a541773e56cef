"""Bars for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from tqdm import tqdm

Batches = Iterator[tuple[int, Tensor]]


def progress_bar(name: str) -> Callable[[Batches], Batches]:
    """What wraps batches of images in a bar."""
    return lambda batches: iter(tqdm(batches, name, unit="batch", disable=None))
