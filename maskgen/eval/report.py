"""A score and everything needed to read it: against what, of how many images, made how, beside its floors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskgen import __version__
from maskgen.files import atomic


def _versions() -> dict[str, str]:
    return {"maskgen": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class Entry:
    """One number.

    Attributes:
        name: of the score, `frechet_distance[fashion]`.
        of: what was scored: `samples`, `train images`, `reconstructions`.
        value: finite, or infinite (the psnr of equal images).
        n_samples: how many images `of` holds.
        extractor: name of the network that looked at them, if one did.
        reference: what they were compared with, if anything.
        n_reference: how many images the reference holds.
        seed: of the samples.
        sampler: settings of the sampler that made them.
        versions: of the packages that computed it.
        standard_error: of `value`, where it was estimated.

    Raises:
        ValueError: a value that is NaN, a count below 1, or a standard error that is negative or NaN.
    """

    name: str
    of: str
    value: float
    n_samples: int
    extractor: str | None = None
    reference: str | None = None
    n_reference: int | None = None
    seed: int | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)
    standard_error: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(f"{self.name} of {self.of} is NaN; it can't be reported")
        if self.n_samples < 1 or (self.n_reference is not None and self.n_reference < 1):
            raise ValueError(f"{self.name} needs images, got {self.n_samples} against {self.n_reference}")
        if self.standard_error is not None and not self.standard_error >= 0:
            raise ValueError(
                f"{self.name} of {self.of} has standard error {self.standard_error}; it must be at least 0"
            )


@dataclass(frozen=True)
class Report:
    """A score, the floors that tell what it could be at best, and other numbers of the same samples.

    Attributes:
        score: distance of the samples to the reference.
        train_floor: distance of training images to it: no generator is expected to be closer.
        reconstruction_floor: distance of the tokenizer's reconstructions: the best a model of its tokens can do.
        others: accuracy, psnr, codebook use, ...

    Raises:
        ValueError: a floor that is another score, or one against another reference.
    """

    score: Entry
    train_floor: Entry | None = None
    reconstruction_floor: Entry | None = None
    others: Sequence[Entry] = ()

    def __post_init__(self) -> None:
        for floor in self.floors:
            if _measure(floor) != _measure(self.score):
                raise ValueError(f"a floor must be measured as the score is: {_measure(floor)}, {_measure(self.score)}")

    @property
    def floors(self) -> tuple[Entry, ...]:
        return tuple(floor for floor in (self.reconstruction_floor, self.train_floor) if floor is not None)

    @property
    def ratio(self) -> float | None:
        """Score over reconstruction floor; None without one, or where it is zero (a lossless tokenizer)."""
        floor = self.reconstruction_floor
        return self.score.value / floor.value if floor is not None and floor.value > 1e-9 else None


def write_report(path: Path, report: Report) -> None:
    """Write JSON; a reader sees the old file or the new one, never a part. Infinity is written as the string "inf".

    Raises:
        TypeError, ValueError: a sampler setting that JSON cannot hold (an object; NaN).
    """
    text = json.dumps(_plain({**asdict(report), "ratio": report.ratio}), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic(path) as file:
        file.write(text.encode() + b"\n")


def publish(report: Report, path: Path | None) -> str:
    """The table, and where the report was written if it was to be."""
    if path is None:
        return format_table(report)
    write_report(path, report)
    return f"{format_table(report)}\nreport: {path}"


def format_table(report: Report) -> str:
    """The report for a terminal: the score, its floors under it, the ratio, the other numbers, how they were made."""
    floors = [_row(floor, f"{floor.of} (floor)") for floor in report.floors]
    others = [_row(entry, entry.of) for entry in report.others]
    rows = [("score", "of", "value", "n", "against"), _row(report.score, report.score.of), *floors, *others]
    return "\n".join([*_aligned(rows), *_notes(report)])


def _row(entry: Entry, of: str) -> tuple[str, ...]:
    against = f"{entry.reference} (n = {entry.n_reference})" if entry.reference is not None else "-"
    error = "" if entry.standard_error is None else f" ± {_number(entry.standard_error)}"
    return entry.name, of, _number(entry.value) + error, str(entry.n_samples), against


def _notes(report: Report) -> Iterable[str]:
    score = report.score
    if report.ratio is not None:
        yield f"{score.of} / reconstruction floor: {report.ratio:.2f}"
    if any(floor.n_samples != score.n_samples for floor in report.floors):
        yield "sizes differ: a Fréchet distance falls as n grows, so compare these with care"
    settings = ", ".join(f"{key}={value}" for key, value in score.sampler.items())
    versions = ", ".join(f"{package} {version}" for package, version in score.versions.items())
    yield f"sampler: {settings or '-'}; seed: {'-' if score.seed is None else score.seed}; {versions}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Columns two spaces apart, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if i in (2, 3) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _number(value: float) -> str:
    return f"{value + 0.0 if abs(value) >= 5e-5 else 0.0:.4f}"


def _measure(entry: Entry) -> tuple[Any, ...]:
    return entry.name, entry.extractor, entry.reference, entry.n_reference


def _plain(value: Any) -> Any:
    """The value with infinities spelled out, mappings and tuples as dicts and lists."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
