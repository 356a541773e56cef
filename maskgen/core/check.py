"""Checks that a part of a recipe makes of its surroundings, before anything is built.

A registered network class may have ``check(cls, context)``, an objective or a process has the method `check(context)`;
a fault is a ValueError whose message begins with the recipe key, ``train.keep_ratio: ...``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskgen.core.streams import StreamKind
from maskgen.core.traits import NetworkTraits


@dataclass(frozen=True)
class CheckContext:
    """Facts of a generator's recipe that are known before its data are there.

    Attributes:
        kind: of the data.
        has_discrete_tokens: whether tokens are ids of a vocabulary.
        traits: of the network, as the recipe configures it.
        model: keys of the network, defaults filled in.
        given: keys of the objective that the recipe gives.
        process, objective: built for tokens of the kind, of any number.
        keep_ratio: smallest share of tokens that training keeps.
        resolution: the first image size of a phase that has one, None without.
        has_views: training has two views of each image.
        has_previews: training writes samples.
        has_pixels: tokens are patches of pixels.
        has_answers: rows are a prompt, which is never masked, and an answer.
    """

    kind: StreamKind
    has_discrete_tokens: bool
    traits: NetworkTraits
    model: Mapping[str, Any]
    given: Mapping[str, object]
    process: object
    objective: object
    keep_ratio: float = 1.0
    resolution: int | None = None
    has_views: bool = False
    has_previews: bool = False
    has_pixels: bool = False
    has_answers: bool = False


def check_part(part: object, context: CheckContext) -> None:
    """Run the check of a part that has one.

    Raises:
        ValueError: the part does not work in this recipe; the message begins with a key.
    """
    check = getattr(part, "check", None)
    if check is not None:
        check(context)


def under(key: str, error: ValueError) -> ValueError:
    """The error of a value, its message with the key in front."""
    return ValueError(f"{key}: {error}")
