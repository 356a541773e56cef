"""Scores of several reports in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgen.evaluation.report import Entry, Report, write_report

Command = Callable[..., tuple[int, str, str]]


def written(path: Path, value: float, reference: str = "digits", **others: float) -> Path:
    """A report of features, with what a probe says of pixels beside."""
    about: dict[str, Any] = {"n_samples": 20, "reference": reference}
    more = [Entry(name, "features", number, **about) for name, number in others.items()]
    pixels = Entry("knn", "raw pixels", 0.9, **about)
    path.parent.mkdir(parents=True, exist_ok=True)
    score = Entry("linear", "features", value, standard_error=0.1, **about)
    write_report(path, Report(score, others=[*more, pixels]))
    return path


def test_a_report_is_a_row_and_a_number_a_column(command: Command, tmp_path: Path) -> None:
    one, folder = written(tmp_path / "one.json", 0.5), tmp_path / "two"
    written(folder / "report.json", 0.75, knn=0.25)
    code, out, error = command("report", one, folder)
    assert code == 0, error
    assert out.splitlines() == [
        "| report | linear | knn |",
        "| --- | --- | --- |",
        f"| {one} | 0.5000 ± 0.1000 | - |",
        f"| {folder} | 0.7500 ± 0.1000 | 0.2500 |",
    ]


def test_what_does_not_compare_is_refused(command: Command, tmp_path: Path) -> None:
    one, other = written(tmp_path / "one.json", 0.5), written(tmp_path / "other.json", 0.5, "letters")
    (tmp_path / "bad.json").write_text('{"score": 3, "others": []}')
    for sources, message in (
        ((one, other), "linear does not compare with the others': reference letters and digits"),
        ((one, tmp_path / "bad.json"), "is no report"),
        ((one, tmp_path / "gone"), "give reports of one kind"),
        ((one, "--output", tmp_path / "out"), "only printed"),
    ):
        code, out, error = command("report", *sources)
        assert (code, out) == (2, "")
        assert message in error
        assert len(error.strip().splitlines()) == 1
