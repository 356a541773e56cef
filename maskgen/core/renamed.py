"""Renamed keys and flags: the former name is accepted, with a notice of one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache

log = logging.getLogger(__name__)


def with_new_names(arguments: Mapping[str, object], renamed: Mapping[str, str], path: str = "") -> dict[str, object]:
    """The arguments under their present names, in the same order.

    Args:
        arguments: keys and values of one part of a recipe.
        renamed: former name -> present name.
        path: of the part, for the notice: ``sampler``.

    Raises:
        ValueError: a key is given under both names.
    """
    at = f"{path}." if path else ""
    both = [(old, new) for old, new in renamed.items() if old in arguments and new in arguments]
    if both:
        (old, new), *_ = both
        raise ValueError(f"{at}{old} is the former name of {at}{new}; give one of them")
    for old in renamed.keys() & arguments.keys():
        notice(f"{at}{old}", f"{at}{renamed[old]}")
    return {renamed.get(key, key): value for key, value in arguments.items()}


@cache
def notice(old: str, new: str) -> None:
    """Log once per process that a key or flag has a new name."""
    log.warning("%s is now called %s; the former name is still accepted", old, new)
