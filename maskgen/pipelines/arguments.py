"""Checks of what is passed to a pipeline: a wrong type or value is one sentence that names the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from maskgen.core.errors import UserError
from maskgen.samplers.guidance import Guidance


class ArgumentTypeError(UserError, TypeError):
    """An argument of a type that cannot be used."""


def wrong_type(name: str, value: object, accepted: str) -> ArgumentTypeError:
    """The error of an argument of a wrong type."""
    shown = repr(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return ArgumentTypeError(f"{name} must be {accepted}, got {shown[:60]}")


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """An int, NumPy's included.

    Raises:
        UserError: another type, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, "a whole number") from None
    if isinstance(value, bool):
        raise wrong_type(name, value, "a whole number")
    if least is not None and number < least:
        raise UserError(f"{name} must be at least {least}, got {number}")
    return number


def finite_number(name: str, value: object) -> float:
    """A float that is finite.

    Raises:
        UserError: another type, NaN or infinity.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong_type(name, value, "a number")
    number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{name} must be finite, got {number}")
    return number


def seeds_of(seed: object, num: object, default: int) -> tuple[list[int], int]:
    """A seed for each sample, and the number of samples.

    Args:
        seed: of sample 0, the others follow; or a list with a seed for each.
        num: how many samples; None is the number of seeds in a list, else `default`.

    Raises:
        UserError: a wrong type, fewer than one sample, or lists of seeds of another length than `num`.
    """
    count = None if num is None else whole_number("num", num, 1)
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        first, count = whole_number("seed", seed), default if count is None else count
        return list(range(first, first + count)), count
    seeds = [whole_number("seed", one) for one in seed]
    if not seeds or (count is not None and len(seeds) != count):
        raise UserError(f"a list of seeds has one for each sample: {len(seeds)} seeds for {count or 'no'} samples")
    return seeds, len(seeds)


def texts_of(name: str, value: object) -> list[str]:
    """A string or a list of strings as a list; None is empty.

    Raises:
        ArgumentTypeError: anything else.
    """
    if value is None:
        return []
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise wrong_type(name, value, "a string or a list of strings")
    return list(parts)


def optional_text(name: str, value: object) -> str | None:
    """A string or None.

    Raises:
        ArgumentTypeError: anything else.
    """
    if value is not None and not isinstance(value, str):
        raise wrong_type(name, value, "a string")
    return value


def guided(before: Guidance, guidance: float | Guidance) -> Guidance:
    """Guidance of another scale, or another guidance.

    Raises:
        UserError: a scale that is negative, infinite or no number.
    """
    if isinstance(guidance, Guidance):
        return guidance
    scale = finite_number("guidance", guidance)
    if scale < 0:
        raise UserError(f"guidance must be at least 0 (1 is off), got {guidance}")
    return replace(before, scale=scale)


def guided_within(guidance: Guidance, interval: Sequence[float]) -> Guidance:
    """Raises:
    UserError: no interval in [0, 1].
    """
    try:
        low, high = interval
        return replace(guidance, interval=(low, high))
    except ValueError:
        raise UserError(f"guidance interval must be LOW,HIGH in [0, 1], low first, got {list(interval)}") from None


def slices(num: int, batch_size: int) -> Iterator[slice]:
    """0..num in batches.

    Raises:
        UserError: num or batch_size below 1.
    """
    n_batches(num, batch_size)
    return (slice(start, min(start + batch_size, num)) for start in range(0, num, batch_size))


def n_batches(num: int, batch_size: int) -> int:
    """Batches of at most `batch_size` samples.

    Raises:
        UserError: num or batch_size below 1, or no whole number.
    """
    return -(-whole_number("num", num, 1) // whole_number("batch_size", batch_size, 1))
