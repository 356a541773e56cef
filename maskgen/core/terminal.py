"""Text from outside (names of files, classes, columns) made safe for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that turn the writing direction, and bytes that are not UTF-8."""


def printable(text: str, keep: str = "") -> str:
    r"""The text with unsafe characters as escapes: ESC becomes ``\x1b``; characters in `keep` stay."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


_MARKUP = re.compile(r"[\\`*<>|&~#]|\](?=[(\[:])")


def markdown(text: str) -> str:
    r"""The text as one line of Markdown that shows it as it is: no link, tag, cell or heading; ESC becomes ``\x1b``."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(printable(text, keep="\n\t").split()))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def first_few(names: Sequence[str], n: int = 5) -> str:
    """`a, b, c, d, e and 7 more`."""
    rest = len(names) - n
    return ", ".join(names[:n]) + (f" and {rest:,} more" if rest > 0 else "")
