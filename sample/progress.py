"""Bars for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(name: str) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """What wraps batches in a bar."""
    return lambda batches: iter(tqdm(batches, name, unit="batch", disable=None))
