"""Sweeps share their work, go on where they stopped, give the same on two processes, and end in a page by itself."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.cli.commands import main
from maskgen.core.lock import RunLock
from maskgen.evaluation.report import Entry
from maskgen.sample.bench_report import Book
from tests.launch import processes, start

Command = Callable[..., tuple[int, str, str]]
SWEEP = ("--samplers", "maskgit,first_hitting", "--steps", "2,3", "--guidance", "1,2", "--num", "12")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, digits_run: Path, digits_judge: Path) -> Path:
    """The output of one sweep over the tiny MaskGIT."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    run(digits_run, *SWEEP, "--protocol", digits_judge, "--output", folder)
    return folder


def run(*arguments: str | Path) -> None:
    before = sys.argv
    sys.argv = ["maskgen", "bench", "fid", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "report.json").read_text())["rows"]
    return found


def values(folder: Path) -> dict[str, float]:
    return {key: row["score"]["value"] for key, row in rows(folder).items()}


def test_every_combination_is_scored_once(bench: Path) -> None:
    found = sorted((row["sampler"], row["steps"] or 0, row["guidance"]) for row in rows(bench).values())
    first_hitting = [("first_hitting", 0, guidance) for guidance in (1.0, 2.0)]
    assert found == first_hitting + [("maskgit", steps, guidance) for steps in (2, 3) for guidance in (1.0, 2.0)]
    by_name = {(row["sampler"], row["steps"], row["guidance"]): row for row in rows(bench).values()}
    assert by_name["maskgit", 2, 1.0]["evaluations"] == 2
    assert by_name["maskgit", 3, 2.0]["evaluations"] == 6, "guidance asks twice"


def test_a_row_carries_all_that_the_number_depends_on(bench: Path) -> None:
    row = next(iter(rows(bench).values()))
    score = row["score"]
    assert (score["n_samples"], score["n_reference"], score["seed"]) == (12, 297, 0)
    assert score["protocol"] == "judge"
    assert {"steps", "guidance", "checkpoint"} <= set(score["sampler"])
    assert {"maskgen", "torch"} <= set(score["versions"])
    assert row["reconstruction_floor"]["value"] == pytest.approx(0, abs=1e-6)
    assert json.loads((bench / "report.json").read_text())["floor"]["of"] == "train images"


def test_arguments_of_the_sampler_hold_for_all_arms(tmp_path: Path, digits_run: Path, digits_judge: Path) -> None:
    chosen = ("--samplers", "maskgit", "--steps", "2", "--set", "choice_temperature=0", "--set", "temperature=0.5")
    run(digits_run, *chosen, "--num", "4", "--protocol", digits_judge, "--output", tmp_path / "out")
    (row,) = rows(tmp_path / "out").values()
    assert row["sampler"] == "maskgit choice_temperature=0 temperature=0.5"
    assert row["score"]["sampler"]["temperature"] == 0.5


def test_the_page_needs_nothing_but_itself(bench: Path) -> None:
    page = (bench / "report.html").read_text()
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert len(sources) == 3 + 6, "two plots against cost, one over guidance, a grid for each row"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    table = (bench / "report.md").read_text()
    assert table.count("| maskgit |") == 4
    assert "Floors: train images" in table
    assert "Protocol judge" in table


def test_a_second_call_makes_nothing_new_and_more_steps_only_what_is_missing(
    bench: Path, digits_run: Path, digits_judge: Path, command: Command
) -> None:
    before = rows(bench)
    arguments = ("--protocol", digits_judge, "--output", bench)
    assert command("bench", "fid", digits_run, *SWEEP, *arguments)[0] == 0
    assert rows(bench) == before, "seconds included"
    code, out, error = command(
        "bench", "fid", digits_run, "--samplers", "maskgit", "--steps", "2,4", "--num", 12, *arguments
    )
    assert code == 0, error
    assert len(rows(bench)) == 6 + 2
    assert {key: rows(bench)[key] for key in before} == before
    assert "| maskgit | 4 |" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--num", 13), "num 12 and 13"), (("--num", 12, "--seed", 1), "seed 0 and 1")],
)
def test_rows_that_do_not_compare_never_share_a_report(
    bench: Path, digits_run: Path, digits_judge: Path, command: Command, options: tuple[Any, ...], message: str
) -> None:
    code, _, error = command(
        "bench", "fid", digits_run, "--steps", 2, *options, "--protocol", digits_judge, "--output", bench
    )
    assert code == 2
    assert f"do not compare: {message}" in error


def test_reports_merge_if_they_compare(
    bench: Path, digits_run: Path, digits_judge: Path, command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    options = ("--protocol", digits_judge, "--output", other)
    assert command("bench", "fid", digits_run, "--samplers", "halton", "--steps", 2, "--num", 12, *options)[0] == 0
    code, out, error = command("report", bench, other, "--output", tmp_path / "both")
    assert code == 0, error
    assert "| halton |" in out
    assert "| first_hitting |" in out
    assert len(rows(tmp_path / "both")) == len(rows(bench)) + 1
    assert (tmp_path / "both" / "report.html").read_text().count("data:image/png") == 3 + len(rows(tmp_path / "both"))
    tree = json.loads((other / "report.json").read_text())
    tree["floor"]["protocol"] = "adm"
    (other / "report.json").write_text(json.dumps(tree))
    code, out, error = command("report", bench, other)
    assert (code, out) == (2, "")
    assert "do not compare: protocol judge and adm" in error
    code, _, error = command("report", tmp_path)
    assert code == 2
    assert "is no report" in error


def test_a_full_disk_is_named_and_what_was_made_before_stays(
    bench: Path, digits_run: Path, digits_judge: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bench / "report.json").read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        options = ("--num", 12, "--protocol", digits_judge, "--output", bench)
        code, _, error = command("bench", "fid", digits_run, "--samplers", "mage", "--steps", 2, *options)
    assert code == 5  # a full disk has its own code
    assert "no space left on device" in error
    assert str(bench) in error
    assert (bench / "report.json").read_text() == before
    assert {file.name for file in bench.rglob(".*")} <= {".lock"}


def test_what_cannot_be_benched_is_one_message(
    command: Command, text_run: Path, digits_run: Path, digits_judge: Path, tmp_path: Path
) -> None:
    options = ("--protocol", digits_judge, "--output", tmp_path / "out")
    cases = {
        "writes text": (text_run,),
        "unknown sampler": (digits_run, "--samplers", "maskgti"),
        "'2,x' is not a list": (digits_run, "--steps", "2,x"),
        "is a tokenizer": ("fashion-vq",),
    }
    for message, arguments in cases.items():
        code, out, error = command("bench", "fid", *arguments, "--num", 4, *options)
        assert (code, out) == (2, ""), error
        assert message in error
        assert "Traceback" not in error


def test_an_output_has_one_writer_and_one_kind_of_report(
    bench: Path, digits_run: Path, digits_judge: Path, command: Command, tmp_path: Path
) -> None:
    options = ("--num", 12, "--protocol", digits_judge, "--output")
    with RunLock(bench):
        code, _, error = command("bench", "fid", digits_run, *options, bench)
    assert code == 2
    assert "is being written by process" in error
    before = (bench / "report.json").read_text()
    for output in (bench, bench / "report.json"):
        code, _, error = command("evaluate", digits_run, *options, output)
        assert code == 2
        assert "report of a benchmark and is not written over" in error
    assert (bench / "report.json").read_text() == before
    (tmp_path / "report.json").write_text('{"score": {}}')
    for arguments in (("bench", "fid", digits_run, *options, tmp_path), ("report", bench, "--output", tmp_path)):
        code, _, error = command(*arguments)
        assert code == 2
        assert "is no report of `maskgen bench`" in error
    assert (tmp_path / "report.json").read_text() == '{"score": {}}'


def test_rows_within_the_noise_of_the_best_are_named() -> None:
    book = Book(num=100, seed=0)
    for steps, value, error in ((4, 1.0, 0.1), (8, 1.1, 0.1), (16, 2.0, 0.1)):
        score = {"name": "d", "value": value, "standard_error": error, "n_samples": 100}
        row = {
            "checkpoint": "c", "sampler": "s", "steps": steps, "guidance": 1.0, "score": score, "accuracy": None,
            "others": [], "metrics": [], "evaluations": 1.0, "seconds": 1.0, "reconstruction_floor": {"value": 0.0},
        }  # fmt: skip
        book.add(str(steps), row, Entry("d", "train images", 0.5, 100, "p"))
    page = book.markdown()
    assert "| 1.0000 ± 0.1000 |" in page
    (line,) = [line for line in page.splitlines() if "Within the noise" in line]
    assert "8 steps" in line
    assert "16 steps" not in line


def test_a_row_made_again_keeps_the_metrics_it_had() -> None:
    book, floor = Book(12, 0), Entry("d", "train images", 1.0, 12)
    book.add("key", {"others": [{"name": "kid", "value": 1}], "metrics": ["kid"]}, floor)
    book.add("key", {"others": [{"name": "recall", "value": 2}], "metrics": ["precision-recall"]}, floor)
    assert [entry["name"] for entry in book.rows["key"]["others"]] == ["recall", "kid"]
    assert book.has("key", ["kid", "precision-recall"])


@pytest.mark.parametrize(
    ("metric", "num", "message"),
    [
        ("sfid", 12, "only protocol adm has spatial features"),
        ("inception-score", 9, "needs at least 10 samples, got --num 9"),
    ],
)
def test_a_metric_that_cannot_work_is_refused_before_anything_is_drawn(
    digits_run: Path, digits_judge: Path, command: Command, tmp_path: Path, metric: str, num: int, message: str
) -> None:
    options = ("--metric", metric, "--num", num, "--protocol", digits_judge, "--output", tmp_path)
    for words in (("bench", "fid"), ("evaluate",)):
        code, _, error = command(*words, digits_run, *options)
        assert code == 2
        assert message in error
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_give_the_numbers_of_one(
    digits_run: Path, digits_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = [word for name in ("kid", "precision-recall", "fid-infinity") for word in ("--metric", name)]
    options = ("--steps", "2", "--images", "230", "--protocol", digits_judge, "--device", "cpu", *metrics)
    names = {"one": 1, "two": 2}
    for name, n in names.items():
        monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / f"cache-{name}"))
        words = [digits_run, *options, "--output", tmp_path / name]
        said = processes(n, "maskgen.sample.bench", words, tmp_path / "logs")
        assert sum(text.count("| checkpoint |") for text in said) == 1, "one process speaks"
    (one,), (two,) = (rows(tmp_path / name).values() for name in names)
    assert two["score"]["value"] == pytest.approx(one["score"]["value"], rel=1e-10)
    assert two["accuracy"] == one["accuracy"]
    assert two["evaluations"] == one["evaluations"]
    found = [[(entry["name"], entry["value"]) for entry in row["others"]] for row in (one, two)]
    assert [name for name, _ in found[0]] == [name for name, _ in found[1]]
    assert [value for _, value in found[1]] == pytest.approx([value for _, value in found[0]], rel=1e-9)
    shards = [sorted(file.name for file in (tmp_path / name / "samples").rglob("*.npz")) for name in names]
    assert shards[0] == shards[1]
    assert len(shards[0]) == 3


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """The threads of the process that is killed, for what is compared with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    digits_run: Path, digits_judge: Path, tmp_path: Path
) -> None:
    options = ("--steps", "2,20", "--num", "300", "--protocol", digits_judge, "--device", "cpu")
    words = [digits_run, *options, "--output", tmp_path / "killed"]
    process = start("maskgen.sample.bench", words, tmp_path / "log", MASKGEN_CACHE=str(tmp_path / "cache"))
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "killed").rglob("images-*.npz"))) < 4 and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was killed before its end"
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").rglob("images-*.npz")}
    run(digits_run, *options, "--output", tmp_path / "killed")
    run(digits_run, *options, "--output", tmp_path / "whole")
    assert values(tmp_path / "killed") == pytest.approx(values(tmp_path / "whole"), rel=1e-12)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "nothing was drawn twice"
