"""The report of benchmark runs: JSON that resumes and merges, Markdown, an HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic, local_path, require_writable
from maskgen.core.terminal import markdown
from maskgen.evaluation.report import MEASURE, Entry, differences, number, plain

from .bench_plots import Row, plots

FILE, GRIDS = "report.json", "grids"


@dataclass
class Book:
    """Rows by key (checkpoint, sampler, seed and number of samples), all of one measure.

    Attributes:
        num, seed: samples of a row, and the first one's seed.
        floor: distance of training images to the reference.
    """

    num: int
    seed: int
    floor: Entry | None = None
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Book:
        """The report of a folder.

        Raises:
            UserError: there is none, or it is not one.
        """
        try:
            tree = json.loads((folder / FILE).read_text("utf-8"))
            floor = Entry(**tree["floor"]) if tree["floor"] else None
            return cls(int(tree["num"]), int(tree["seed"]), floor, dict(tree["rows"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / FILE} is no report of `maskgen bench`: {first_line(error)}") from None

    def require_same(self, floor: Entry, num: int, seed: int) -> None:
        """Raises:
        UserError: these rows are of another protocol, reference, number of samples or seed.
        """
        wrong = [] if self.floor is None else differences(self.floor, floor, MEASURE)
        pairs = (("num", self.num, num), ("seed", self.seed, seed))
        wrong += [f"{key} {one} and {other}" for key, one, other in pairs if one != other]
        if wrong:
            raise UserError(
                f"these scores do not compare: {'; '.join(wrong)}. Choose another --output or the same options"
            )

    def has(self, key: str, metrics: Sequence[str]) -> bool:
        return key in self.rows and set(metrics) <= set(self.rows[key]["metrics"])

    def add(self, key: str, row: Row, floor: Entry) -> None:
        """Add a row; it keeps the metrics of an earlier row of the same samples that were not computed again."""
        old = self.rows.get(key, {"others": [], "metrics": []})
        found = {entry["name"] for entry in row["others"]}
        others = [*row["others"], *(entry for entry in old["others"] if entry["name"] not in found)]
        metrics = list(dict.fromkeys([*old["metrics"], *row["metrics"]]))
        self.rows[key], self.floor = {**row, "others": others, "metrics": metrics}, floor

    def write(self, folder: Path) -> None:
        """report.json."""
        tree = {
            "num": self.num,
            "seed": self.seed,
            "floor": plain(asdict(self.floor)) if self.floor else None,
            "rows": self.rows,
        }
        _write(folder / FILE, json.dumps(plain(tree), indent=1, allow_nan=False))

    def write_pages(self, folder: Path) -> None:
        """report.json, report.md and report.html."""
        self.write(folder)
        _write(folder / "report.md", self.markdown() + "\n")
        _write(folder / "report.html", self.page(folder))

    def markdown(self) -> str:
        """A table, best row first, with the floors and the protocol under it."""
        head, *lines = ([markdown(cell) for cell in line] for line in self._table())
        rule = "|" + "---|" * len(head)
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join(["| " + " | ".join(head) + " |", rule, *rows, "", *map(markdown, self._notes())])

    def page(self, folder: Path) -> str:
        """The page: table, plots, grids, all inside."""
        head, *lines = self._table()
        cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
        titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
        pictures = [(title, png) for title, png in plots(list(self.rows.values()), self._floors())]
        for row in self._sorted():
            if (file := folder / row["grid"]).is_file():
                pictures.append((f"{title_of(row)}: {number(row['score']['value'])}", file.read_bytes()))
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return _PAGE.format(
            table=f"<table><tr>{titles}</tr>{cells}</table>",
            notes=notes,
            pictures="".join(f"<h3>{html.escape(title)}</h3><img src='{_embedded(png)}'>" for title, png in pictures),
        )

    def _sorted(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda row: row["score"]["value"])

    def _table(self) -> list[list[str]]:
        rows = self._sorted()
        names = list(dict.fromkeys(entry["name"] for row in rows for entry in row["others"]))
        score = rows[0]["score"]["name"] if rows else "score"
        has_accuracy = any(row["accuracy"] is not None for row in rows)
        head = [
            "checkpoint",
            "sampler",
            "steps",
            "guidance",
            score,
            *(["class accuracy"] if has_accuracy else []),
            *names,
        ]
        table = [[*head, "NFE", "scheduled NFE", "seconds", "n"]]
        for row in rows:
            others = {entry["name"]: entry for entry in row["others"]}
            accuracy = [] if not has_accuracy else ["-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"]
            table.append(
                [
                    *(str(row[key] if row[key] is not None else "-") for key in ("checkpoint", "sampler", "steps")),
                    f"{row['guidance']:g}",
                    _with_error(row["score"]),
                    *accuracy,
                    *(_with_error(others.get(name)) for name in names),
                    f"{row['evaluations']:.1f}",
                    "-" if row.get("scheduled") is None else f"{row['scheduled']:g}",
                    f"{row['seconds']:.4f}",
                    f"{row['score']['n_samples']:,}",
                ]
            )
        return table

    def _floors(self) -> dict[str, float]:
        found = {} if self.floor is None else {"train images": float(self.floor.value)}
        for row in self.rows.values():
            found[f"reconstructions, {row['checkpoint']}"] = float(row["reconstruction_floor"]["value"])
        return found

    def _within_noise(self) -> list[str]:
        """A line on the rows less than two standard errors of the difference from the best."""
        rows = self._sorted()
        if not rows or (noise := rows[0]["score"].get("standard_error")) is None:
            return []
        best, *rest = rows
        close = []
        for row in rest:
            error = math.hypot(noise, row["score"].get("standard_error") or 0.0)
            if row["score"]["value"] - best["score"]["value"] < 2 * error:
                close.append(title_of(row))
        if not close:
            return []
        return [f"Within the noise of the best (2 standard errors of the difference): {'; '.join(close)}."]

    def _notes(self) -> list[str]:
        if self.floor is None:
            return ["nothing was scored yet"]
        entry = self.floor
        floors = "; ".join(f"{name} {number(value)}" for name, value in self._floors().items())
        versions = ", ".join(f"{package} {version}" for package, version in entry.versions.items())
        return [
            *self._within_noise(),
            f"Floors: {floors}. NFE (network evaluations) and seconds are per sample; "
            "scheduled NFE include the steps that unmask no token.",
            f"Protocol {entry.protocol}; resize: {entry.resize}; weights {str(entry.weights)[:12]}; reference "
            f"{entry.reference} (n = {entry.n_reference}); seeds from {self.seed}; {versions}.",
        ]


def merge(directories: Sequence[str], output: str | None = None) -> str:
    """The table of several reports together, written to a folder if one is given.

    Raises:
        UserError: no report in a directory, reports that do not compare, or an output that cannot be written.
    """
    folders = [local_path(directory) for directory in directories]
    books = [Book.read(folder) for folder in folders]
    whole = Book(books[0].num, books[0].seed, books[0].floor)
    for folder, book in zip(folders, books, strict=True):
        if book.floor is not None:
            _require_same(whole, book, folder)
            whole.rows |= book.rows
            whole.floor = book.floor
    if output is not None:
        _write_merged(whole, folders, local_path(output), output)
    return whole.markdown()


def _require_same(whole: Book, book: Book, folder: Path) -> None:
    assert book.floor is not None
    try:
        whole.require_same(book.floor, book.num, book.seed)
    except UserError as error:
        reason = str(error).partition(". Choose")[0]
        raise UserError(f"{folder / FILE}: {reason}; merge reports of one protocol, reference, num and seed") from None


def _write_merged(whole: Book, folders: Sequence[Path], target: Path, name: str) -> None:
    require_writable(target, name)
    if (target / FILE).is_file():
        Book.read(target)  # a report of another kind is not written over
    for folder in folders:
        for file in (folder / GRIDS).glob("*.png"):
            if not (target / GRIDS / file.name).exists():
                with file.open("rb") as source, atomic(target / GRIDS / file.name) as copy:
                    shutil.copyfileobj(source, copy)
    whole.write_pages(target)


def title_of(row: Row) -> str:
    """One line for a row."""
    steps = f", {row['steps']} steps" if row["steps"] is not None else ""
    return f"{row['checkpoint']}, {row['sampler']}{steps}, guidance {row['guidance']:g}"


def _with_error(entry: Row | None) -> str:
    if entry is None:
        return "-"
    error = entry.get("standard_error")
    return number(entry["value"]) + (f" ± {number(error)}" if error is not None else "")


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _write(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>maskgen bench</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>maskgen bench</h1>
{table}
{notes}
{pictures}
</html>
"""
