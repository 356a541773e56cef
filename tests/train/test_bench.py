"""`maskgen bench budget`: equal processor seconds, resumable pieces, failures that say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskgen.errors import UserError
from maskgen.recipe import load_recipe
from maskgen.shipped import experiment_names
from maskgen.train.bench import run
from maskgen.train.bench_report import summarise, write_reports
from maskgen.train.experiment import Experiment, read_experiment

SMALL = [
    *("model.width=8", "model.depth=1", "model.heads=2", "train.batch_size=8", "train.preview_every=0"),
    *("train.validation_rows=0", "train.tensorboard=false"),
]
BUDGET = 0.02  # minutes


def write(path: Path, judge: Path, **changes: Any) -> str:
    content = {
        "minutes": BUDGET,
        "overrides": SMALL,
        "evaluate": {"num": 20, "along": 1, "num_along": 10, "options": ["--protocol", str(judge), "--steps", "1"]},
        "groups": {"main": ["whole", "tuned", "broken"]},
        "arms": {
            "whole": {"recipe": "digits-maskgit"},
            "tuned": {
                "recipe": "digits-maskgit",
                "label": "dropped, then whole",
                "overrides": ["train.phases=[{steps: 9, keep_ratio: 0.25}, {steps: 1}]"],
            },
            "broken": {"recipe": "digits-maskgit", "overrides": ["model.heads=3"]},
        },
    }
    path.write_text(yaml.safe_dump(content | changes))
    return str(path)


@pytest.mark.slow
def test_arms_get_equal_processor_seconds_and_pieces_are_kept(tmp_path: Path, digits_judge: Path) -> None:
    file, home = write(tmp_path / "bench.yaml", digits_judge), tmp_path / "out"
    table = run(file=file, output=str(home), jobs=2)
    assert "dropped, then whole" in table
    assert "failed: " in table
    assert "width must be a multiple of heads" in table
    report = json.loads((home / "report.json").read_text())
    whole, tuned, broken = report["arms"]
    assert broken["n_seeds"] == 0
    for arm in (whole, tuned):
        assert 0.5 * 60 * BUDGET < arm["cpu_seconds"] < 2 * 60 * BUDGET + 1
        assert arm["value"] > 0
    assert tuned["macs_per_sample"] < whole["macs_per_sample"]
    assert (home / "distances.png").stat().st_size > 1000
    assert len(report["runs"][0]["scores"]) == 2

    kept = {path: path.stat().st_mtime_ns for path in home.glob("whole-seed0/run/checkpoint-*/model.safetensors")}
    (score,) = home.glob("whole-seed0/checkpoint-*-20.json")
    score.unlink()
    shutil.rmtree(home / "tuned-seed0" / "run" / f"checkpoint-{round(tuned['steps'])}")  # killed before its end
    again = run(file=file, output=str(home), jobs=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert score.is_file()
    report = json.loads((home / "report.json").read_text())
    assert report["arms"][1]["value"] == tuned["value"]
    assert report["arms"][0]["value"] == whole["value"]
    assert "dropped, then whole" in again

    with pytest.raises(UserError, match=r"is of another budget or recipe; choose another --output"):
        run(file=file, output=str(home), minutes=1, arms="whole")


def test_the_shipped_experiment_is_whole() -> None:
    experiment = read_experiment(None)
    assert experiment.chosen(None) == list(experiment.groups["main"])
    for names in experiment.groups.values():
        assert set(names) <= set(experiment.arms)


def test_arms_are_chosen_by_name_and_group() -> None:
    experiment = Experiment.model_validate(
        {"minutes": 1, "arms": {name: {"recipe": "r"} for name in "abc"}, "groups": {"main": ["a"], "rest": ["b", "c"]}}
    )
    assert experiment.chosen(None) == ["a"]
    assert experiment.chosen("c,rest") == ["c", "b"]
    with pytest.raises(UserError, match=r"--arms d: unknown; choose from main, rest, a, b, c"):
        experiment.chosen("d")


def test_a_faulty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--file .*gone.yaml cannot be read"):
        read_experiment(str(tmp_path / "gone.yaml"))
    (tmp_path / "x.yaml").write_text("{minutes: 1, arms: {a: {recipe: r, labl: x}}}")
    with pytest.raises(UserError, match=r"arms.a.labl: unknown key"):
        read_experiment(str(tmp_path / "x.yaml"))


def row(seed: int, value: float, **more: Any) -> dict[str, Any]:
    common = {"name": "d", "value": value}
    scores = [{"step": step, "cpu_seconds": 60 * step, "num": num, **common} for step, num in ((1, 5), (2, 9))]
    spent = {"steps": 10, "samples": 80, "cpu_seconds": 100.0, "parameters": 5, "macs_per_sample": 2e6}
    return {"arm": "a", "label": "A", "seed": seed, "scores": scores, **spent, **more}


def test_an_arm_is_the_mean_of_its_whole_runs_with_a_standard_error(tmp_path: Path) -> None:
    rows = [row(0, 1.0), row(1, 3.0), {"arm": "a", "label": "A", "seed": 2, "scores": [], "error": "boom"}]
    arm = summarise(rows)
    assert (arm["value"], arm["standard_error"], arm["n_seeds"]) == (2.0, 1.0, 2)
    assert arm["errors"] == ["seed 2: boom"]
    assert "| A | 2.000 ± 1.000 | 2 (1 failed) | 100 | 10 | 80 | 2.0 M |" in write_reports(tmp_path, "", rows)


@pytest.mark.parametrize("name", experiment_names())
def test_every_arm_of_a_shipped_experiment_is_a_valid_recipe(name: str) -> None:
    experiment = read_experiment(name=name)
    for arm in experiment.arms.values():
        if arm.recipe:
            load_recipe(arm.recipe, [*experiment.overrides, *arm.overrides])
    assert {arm for names in experiment.groups.values() for arm in names} <= set(experiment.arms)
