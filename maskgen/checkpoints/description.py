"""Values of a checkpoint.json, an untrusted file: types and limits are checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping

from maskgen.core.terminal import printable

MOST_CLASSES = 10**6
MOST_SIDE = 2**27
"""Largest size that is accepted, and the largest number of values of an image."""
MOST_STEPS = 2**62


def size(value: object, name: str, least: int = 1, most: int = MOST_SIDE) -> int:
    """A whole number within limits.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}, got {_short(value)}")
    return value


def image_shape(value: object, name: str) -> tuple[int, int, int]:
    """(C, H, W) of images that can be held in memory.

    Raises:
        ValueError: it is no such shape.
    """
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{name} must be three whole numbers C, H, W, got {_short(value)}")
    channels, height, width = (size(side, name) for side in value)
    if channels * height * width > MOST_SIDE:
        raise ValueError(f"{name} {channels} x {height} x {width} is more than the {MOST_SIDE:,} values of an image")
    return channels, height, width


def token_grid(value: object, name: str) -> tuple[int, ...]:
    """Numbers of tokens along each axis.

    Raises:
        ValueError: they are no grid.
    """
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 8:
        raise ValueError(f"{name} must be a list of whole numbers, got {_short(value)}")
    return tuple(size(side, name) for side in value)


def class_names(value: object) -> tuple[str, ...]:
    """Names of classes, made printable.

    Raises:
        ValueError: no list of at most `MOST_CLASSES` names.
    """
    if not isinstance(value, list | tuple) or len(value) > MOST_CLASSES:
        count = f"{len(value):,} of them" if isinstance(value, list | tuple) else _short(value)
        raise ValueError(f"classes must be a list of at most {MOST_CLASSES:,} names, got {count}")
    return tuple(printable(str(name)) for name in value)


def keys_of(value: object, name: str) -> Mapping[str, object] | None:
    """A tree of keys; None where it is left out.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must have keys, got {_short(value)}")
    return {str(key): one for key, one in value.items()}


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value}" if not isinstance(value, int) or abs(value) < 1e30 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
