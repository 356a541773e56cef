"""The key `streams` of a recipe: what a row holds beside or in place of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from maskgen.core.streams import Stream, StreamKind, TokenLayout
from maskgen.recipes.tree import RecipeError

KINDS: Mapping[str, StreamKind] = {
    "image": "image", "caption": "text", "label": "label", "map": "map",
}  # fmt: skip
"""Names of streams, which are those of the parts of a sample, and their kinds."""


class StreamSettings(BaseModel):
    """Settings of one stream; those of pictures are the recipe's `tokenizer`.

    Attributes:
        tokenizer: of a caption: `characters`, `bytes`, `bpe` or `huggingface`.
        length: tokens of a caption, at most.
        cell, patch: of a map, see `MapStream`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: str | dict[str, Any] | None = None
    length: int | None = Field(None, ge=1, le=4096)
    cell: int | None = Field(None, ge=1)
    patch: int | None = Field(None, ge=1)


OWN: Mapping[str, tuple[str, ...]] = {"caption": ("tokenizer", "length"), "map": ("cell", "patch")}
"""Keys of the streams that have some."""


def check_streams(streams: Mapping[str, StreamSettings], parts: tuple[str, ...], data: str) -> None:
    """Check names and keys of streams against the parts of the data.

    Raises:
        RecipeError: an unknown stream, one that the data do not have, a key that it does not have or misses.
    """
    for name, settings in streams.items():
        if name not in KINDS or name not in parts:
            there = ", ".join(part for part in parts if part in KINDS)
            raise RecipeError(f"streams.{name}: data {data} has the parts {there}; choose from these")
        given = settings.model_dump(exclude_none=True)
        wrong = [key for key in given if key not in OWN.get(name, ())]
        if wrong:
            accepted = ", ".join(OWN.get(name, ())) or "none"
            raise RecipeError(f"streams.{name}.{wrong[0]}: unknown key; accepted here: {accepted}")
        if name == "caption":
            missing = [key for key in OWN[name] if key not in given]
            if missing:
                raise RecipeError(f"streams.{name}.{missing[0]}: missing; a caption needs a tokenizer and a length")
    if "image" not in streams:
        raise RecipeError("streams.image: missing; the other streams stand beside a picture")


def smallest_layout(streams: Mapping[str, StreamSettings]) -> TokenLayout:
    """A layout of these streams with two ids and one token each, to check objectives and processes by."""
    return TokenLayout.of(*(Stream(name, KINDS[name], 2, (1,)) for name in streams))
