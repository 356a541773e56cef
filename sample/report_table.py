"""Reports of `maskgen evaluate` and `maskgen probe` side by side, a row each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.core.terminal import markdown
from maskgen.evaluation.report import Entry, differences, number

from .bench_report import FILE, merge


def run(sources: Sequence[str], output: str | None = None) -> str:
    """The table of several reports, files or folders that hold one: sweeps merged, scores side by side.

    Raises:
        UserError: reports that cannot be read or do not compare, or of both kinds.
    """
    found = [(source, read_entries(_file(local_path(source)))) for source in sources]
    scores = [(source, entries) for source, entries in found if entries is not None]
    if not scores:
        return merge(sources, output)
    if len(scores) < len(found):
        other = next(source for source, entries in found if entries is None)
        raise UserError(f"{other} is no report of evaluate or probe and {scores[0][0]} is; give reports of one kind")
    if output is not None:
        raise UserError(f"--output {output}: scores side by side are only printed; leave it out")
    return table(scores)


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def read_entries(path: Path) -> list[Entry] | None:
    """The numbers of what a report scores, the score first; None if the file is no report of a score.

    Raises:
        UserError: it is a damaged one.
    """
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text("utf-8"))
        if not (isinstance(tree, dict) and "score" in tree and "others" in tree):
            return None
        first, *others = (Entry(**{**one, "value": float(one["value"])}) for one in (tree["score"], *tree["others"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report: {first_line(error)}") from None
    return [first, *(entry for entry in others if entry.of == first.of)]


def table(reports: Sequence[tuple[str, Sequence[Entry]]]) -> str:
    """Named reports -> a table in Markdown: a column for each number, `-` where a report has none.

    Raises:
        UserError: two numbers of a name that do not compare.
    """
    first = {entry.name: entry for _, entries in reversed(reports) for entry in entries}
    for name, entries in reports:
        for entry in entries:
            if wrong := differences(entry, first[entry.name]):
                raise UserError(f"{name}: {entry.name} does not compare with the others': {'; '.join(wrong)}")
    columns = list(dict.fromkeys(entry.name for _, entries in reports for entry in entries))
    rows = [[markdown(name), *_cells(columns, entries)] for name, entries in reports]
    lines = [["report", *map(markdown, columns)], ["---"] * (1 + len(columns)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(columns: Sequence[str], entries: Iterable[Entry]) -> Iterable[str]:
    found = {entry.name: entry for entry in entries}
    for column in columns:
        entry = found.get(column)
        error = entry.standard_error if entry is not None else None
        yield "-" if entry is None else number(entry.value) + ("" if error is None else f" ± {number(error)}")
