"""Cutting a long text at places that do not change its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Cut = Callable[[str, int], int]
"""(text, at) -> the first permitted place at or after `at`, at most the text's length."""

PIECE = 2**16


def pieces(text: str, cut: Cut | None) -> Iterator[str]:
    """A text in non-empty parts of about `PIECE` characters; whole without a `cut`."""
    first = 0
    while cut is not None and len(text) - first > PIECE:
        last = cut(text, first + PIECE)
        yield text[first:last]
        first = last
    if first < len(text):
        yield text[first:]


def anywhere(text: str, at: int) -> int:  # noqa: ARG001
    """For tokenizers of single characters or bytes."""
    return at


def before_space(text: str, at: int) -> int:
    """The first place at or after `at` where a space follows a word: byte-level tokenizers start a word there."""
    while (at := text.find(" ", at)) >= 0:
        if not text[at - 1].isspace():
            return at
        at += 1
    return len(text)


def cut_of(spec: dict[str, Any]) -> Cut | None:
    """The rule for cutting a text of this tokenizer (`tokenizer.json`); None if there is none."""
    split, model = spec["pre_tokenizer"], spec["model"]
    is_byte_level = split is not None and split["type"] == "ByteLevel" and not split["add_prefix_space"]
    if spec["normalizer"] is not None or model["type"] != "BPE" or not (split is None or is_byte_level):
        return None
    if not model["merges"] and not model["ignore_merges"]:
        return anywhere
    return before_space if is_byte_level and split["use_regex"] else None
