"""A score and everything needed to read it: against what, of how many images, made how, beside its floors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import torch

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.core.version import __version__


def _versions() -> dict[str, str]:
    return {"maskgen": __version__, "torch": torch.__version__}


class Made(TypedDict, total=False):
    """Attributes of an `Entry` that tell how the samples were made."""

    seed: int
    sampler: Mapping[str, object]


@dataclass(frozen=True)
class Entry:
    """One number.

    Attributes:
        name: of the score, `frechet_distance[fashion]`.
        of: what was scored: `samples`, `train images`, `reconstructions`.
        value: finite, or infinite (the psnr of equal images).
        n_samples: how many images `of` holds; None where a statistics file does not say.
        protocol, resize, weights: of the `Extractor` that computed their features, if one did.
        format: of the images' files.
        reference: what they were compared with, if anything.
        reference_digest: SHA-256 of its images.
        n_reference: how many images the reference holds.
        seed: of the samples.
        sampler: settings of the sampler that made them.
        versions: of the packages that computed it.
        standard_error: of `value`, where it was estimated.
        facts: how it was computed, where the name does not say.

    Raises:
        ValueError: a value that is NaN, a count below 1, or a standard error that is negative or NaN.
    """

    name: str
    of: str
    value: float
    n_samples: int | None
    protocol: str | None = None
    resize: str | None = None
    weights: str | None = None
    format: str | None = None
    reference: str | None = None
    reference_digest: str | None = None
    n_reference: int | None = None
    seed: int | None = None
    sampler: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)
    standard_error: float | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(f"{self.name} of {self.of} is NaN; it can't be reported")
        if (self.n_samples is not None and self.n_samples < 1) or (
            self.n_reference is not None and self.n_reference < 1
        ):
            raise ValueError(f"{self.name} needs images, got {self.n_samples} against {self.n_reference}")
        if self.standard_error is not None and not self.standard_error >= 0:
            raise ValueError(
                f"{self.name} of {self.of} has standard error {self.standard_error}; it must be at least 0"
            )


FORMER_NAMES = {
    "evaluations_per_sample": "nfe_per_sample",
    "evaluations_scheduled": "nfe_scheduled",
    "head_evaluations_per_token": "head_nfe_per_token",
}
"""Names of numbers in reports of earlier versions, and their present names."""


def present_name(name: str) -> str:
    """The present name of a number, from the name in a report or a benchmark file of any version."""
    return FORMER_NAMES.get(name, name)


MEASURE = ("name", "protocol", "resize", "weights", "reference", "reference_digest", "n_reference")
"""What makes two numbers the same measure."""


def differences(one: Entry, other: Entry, keys: Sequence[str] = (*MEASURE, "n_samples")) -> list[str]:
    """Why two scores do not compare, a line for each key; empty if they do."""
    pairs = [(key, getattr(one, key), getattr(other, key)) for key in keys]
    return [f"{key} {_short(a)} and {_short(b)}" for key, a, b in pairs if a != b]


def require_comparable(one: Entry, other: Entry) -> None:
    """Raises:
    UserError: the scores are of different protocols, references or numbers of images; the message says which.
    """
    if wrong := differences(one, other):
        raise UserError(f"these scores do not compare: {'; '.join(wrong)}")


@dataclass(frozen=True)
class Report:
    """A score, the floors that tell what it could be at best, and other numbers of the same samples.

    `notes` are for whoever reads it.

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
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for floor in self.floors:
            if wrong := differences(floor, self.score, MEASURE):
                raise ValueError(f"a floor must be measured as the score is: {wrong[0]}")

    @property
    def floors(self) -> tuple[Entry, ...]:
        return tuple(floor for floor in (self.reconstruction_floor, self.train_floor) if floor is not None)

    @property
    def ratio(self) -> float | None:
        """Score over reconstruction floor; None without one, or where it is zero (a lossless tokenizer)."""
        floor = self.reconstruction_floor
        return self.score.value / floor.value if floor is not None and floor.value > 1e-9 else None


def require_no_bench(path: Path) -> None:
    """Raises:
    UserError: the file is the report of a benchmark, which took long to compute.
    """
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(tree, dict) and "rows" in tree and "floor" in tree:
        raise UserError(f"{path} is the report of a benchmark and is not written over; choose another --output")


def write_report(path: Path, report: Report) -> None:
    """Write JSON; a reader sees the old file or the new one, never a part. Infinity is written as the string "inf".

    Raises:
        TypeError, ValueError: a sampler setting that JSON cannot hold (an object; NaN).
    """
    text = json.dumps(plain({**asdict(report), "ratio": report.ratio}), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic(path) as file:
        file.write(text.encode() + b"\n")


def publish(report: Report, path: Path | None) -> str:
    """The table, and where the report was written if it was to be."""
    if path is None:
        return format_table(report)
    write_report(path, report)
    return f"{format_table(report)}\nreport: {path}"


def format_table(report: Report) -> str:
    """The report for a terminal: score, floors, ratio, other numbers, settings."""
    floors = [_row(floor, f"{floor.of} (floor)") for floor in report.floors]
    others = [_row(entry, entry.of) for entry in report.others]
    rows = [("score", "of", "value", "n", "against"), _row(report.score, report.score.of), *floors, *others]
    return "\n".join([*_aligned(rows), *_notes(report)])


def _row(entry: Entry, of: str) -> tuple[str, ...]:
    against = f"{entry.reference} (n = {entry.n_reference or '?'})" if entry.reference is not None else "-"
    error = "" if entry.standard_error is None else f" ± {number(entry.standard_error)}"
    return entry.name, of, number(entry.value) + error, str(entry.n_samples or "?"), against


def _notes(report: Report) -> Iterable[str]:
    score = report.score
    if report.ratio is not None:
        yield f"{score.of} / reconstruction floor: {report.ratio:.2f}"
    if any(floor.n_samples != score.n_samples for floor in report.floors):
        yield "sizes differ: a Fréchet distance falls as n grows, so compare these with care"
    yield from report.notes
    settings = ", ".join(f"{key}={value}" for key, value in score.sampler.items())
    versions = ", ".join(f"{package} {version}" for package, version in score.versions.items())
    if score.protocol is not None:
        yield f"protocol: {score.protocol}; resize: {score.resize or '?'}; weights: {(score.weights or '?')[:12]}"
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


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12]


def number(value: float) -> str:
    """Four decimals, three digits below 0.05, and 0 for rounding errors."""
    if abs(value) < 1e-9:
        return "0.0000"
    return f"{value:.4f}" if abs(value) >= 0.05 else f"{value:.3g}"


def plain(value: object) -> object:
    """The value with infinities spelled out, mappings and tuples as dicts and lists."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value
