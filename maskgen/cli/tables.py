"""Lists as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of equally many cells in columns; further lines of a last cell are indented below it."""
    lines = [*([head] if head else []), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)][:-1]
    indent = " " * (sum(widths) + 2 * len(widths))
    found = []
    for *cells, last in lines:
        start = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=True))
        found.append((start + last.replace("\n", f"\n{indent}")).rstrip())
    return "\n".join(found)
