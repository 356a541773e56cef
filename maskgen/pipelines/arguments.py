"""Checks of what is passed to a pipeline: a wrong type or value is one sentence that names the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from maskgen.core.errors import UserError


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
