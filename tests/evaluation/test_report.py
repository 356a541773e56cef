import dataclasses
import json
import math
from pathlib import Path

import pytest

from maskgen.core.errors import UserError
from maskgen.core.version import __version__
from maskgen.evaluation.report import Entry, Report, format_table, require_comparable, write_report

NAME = "frechet_distance[tiny]"


def entry(of: str, value: float, n: int = 1000, name: str = NAME, reference: str = "toy/test") -> Entry:
    about = {"protocol": "tiny", "reference": reference, "n_reference": 500}
    return Entry(name, of, value, n, **about, seed=3, sampler={"steps": 12, "order": ("random",)})


def full_report() -> Report:
    return Report(
        score=entry("samples", 6.0),
        train_floor=entry("train images", 1.0),
        reconstruction_floor=entry("reconstructions", 4.0),
        others=(
            Entry("accuracy", "samples", 0.9, 1000, protocol="tiny"),
            Entry("psnr", "reconstructions", math.inf, 500),
        ),
    )


def test_every_entry_says_how_it_came_about(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.json", full_report())
    stored = json.loads((tmp_path / "new" / "report.json").read_text())
    score = stored["score"]
    assert (score["value"], score["n_samples"], score["n_reference"], score["reference"]) == (
        6.0,
        1000,
        500,
        "toy/test",
    )
    assert score["sampler"] == {"steps": 12, "order": ["random"]}
    assert score["versions"]["maskgen"] == __version__
    assert stored["ratio"] == 1.5


def test_infinity_is_written_in_json_that_any_reader_takes(tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", full_report())
    stored = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert stored["others"][1]["value"] == "inf"


def test_a_report_that_cannot_be_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, full_report())
    before = path.read_text()
    with pytest.raises(TypeError):
        write_report(path, Report(Entry(NAME, "samples", 1.0, 10, sampler={"order": object()})))
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_the_table_has_the_floors_under_the_score_and_their_ratio() -> None:
    lines = format_table(full_report()).splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["samples", "reconstructions", "train"]
    assert "(floor)" in lines[2]
    assert "(floor)" in lines[3]
    assert "samples / reconstruction floor: 1.50" in lines
    assert "steps=12" in lines[-1]
    assert "seed: 3" in lines[-1]


def test_the_columns_of_the_table_line_up() -> None:
    rows = format_table(full_report()).splitlines()[:6]
    ends = {
        row.index(text) + len(text) for row, text in zip(rows, ("value", "6.0000", "4.0000", "1.0000"), strict=False)
    }
    assert len(ends) == 1
    assert len({len(row) for row in rows[1:4]}) == 1


def test_a_score_alone_makes_a_table_without_ratio() -> None:
    table = format_table(Report(Entry("accuracy", "samples", 0.5, 10)))
    assert "floor" not in table
    assert "0.5000" in table


def test_a_lossless_tokenizer_has_no_ratio() -> None:
    report = Report(entry("samples", 6.0), reconstruction_floor=entry("reconstructions", -1e-13))
    assert report.ratio is None
    assert "-0.0000" not in format_table(report)


def test_sets_of_different_sizes_are_pointed_out() -> None:
    uneven = Report(entry("samples", 6.0), train_floor=entry("train images", 1.0, n=60000))
    assert "sizes differ" in format_table(uneven)
    assert "sizes differ" not in format_table(full_report())


@pytest.mark.parametrize("other", [{"name": "accuracy"}, {"reference": "toy/train"}])
def test_a_floor_of_another_measure_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="measured as the score is"):
        Report(entry("samples", 6.0), train_floor=entry("train images", 1.0, **other))


def test_a_number_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is NaN"):
        entry("samples", math.nan)
    with pytest.raises(ValueError, match="needs images, got 0"):
        entry("samples", 1.0, n=0)


def test_a_standard_error_stands_beside_its_value_and_in_the_file(tmp_path: Path) -> None:
    score = Entry("bits_per_char[bound]", "test text", 1.37, 5000, standard_error=0.0123)
    report = Report(score, others=(Entry("perplexity[bound]", "test text", 2.5847, 5000),))
    lines = format_table(report).splitlines()
    assert lines[1].split()[3:7] == ["1.3700", "±", "0.0123", "5000"]
    assert "±" not in lines[2]
    write_report(tmp_path / "report.json", report)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["score"]["standard_error"] == 0.0123
    assert stored["others"][0]["standard_error"] is None


@pytest.mark.parametrize("error", [-0.1, math.nan])
def test_a_standard_error_that_cannot_be_is_refused(error: float) -> None:
    with pytest.raises(ValueError, match="it must be at least 0"):
        Entry("perplexity[bound]", "test text", 2.0, 10, standard_error=error)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"protocol": "adm"}, "protocol tiny and adm"),
        ({"resize": "bicubic"}, "resize None and bicubic"),
        ({"weights": "ab" * 32}, "weights None and abababababab"),
        ({"reference": "toy/train"}, "reference toy/test and toy/train"),
        ({"n_reference": 400}, "n_reference 500 and 400"),
        ({"n_samples": 999}, "n_samples 1000 and 999"),
    ],
)
def test_scores_of_different_measures_do_not_compare_and_are_told_why(other: dict[str, object], reason: str) -> None:
    one = entry("samples", 1.0)
    require_comparable(one, dataclasses.replace(one, value=2.0, seed=7))
    with pytest.raises(UserError, match=f"do not compare: {reason}$"):
        require_comparable(one, dataclasses.replace(one, **other))  # type: ignore[arg-type]


def test_small_numbers_keep_three_digits_and_notes_are_printed() -> None:
    table = format_table(Report(entry("samples", 0.000123456), notes=("read this",)))
    assert "0.000123" in table
    assert "read this" in table.splitlines()
