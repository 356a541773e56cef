"""`maskgen bench budget`: equal processor seconds, resumable pieces, failures that say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskgen.core.errors import UserError
from maskgen.recipes.load import load_recipe
from maskgen.recipes.shipped import experiment_names
from maskgen.train.bench import run
from maskgen.train.bench_report import summarise, write_reports
from maskgen.train.experiment import Experiment, read_experiment
from maskgen.train.subprocesses import Failed
from maskgen.train.subprocesses import maskgen as fresh
from tests.launch import maskgen as forked

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


@pytest.mark.parametrize("maskgen", [fresh, forked])
def test_a_command_in_a_process_of_its_own_gives_its_output_or_its_last_line(maskgen: Callable[..., str]) -> None:
    assert "image/digits-maskgit" in maskgen("recipes")
    with pytest.raises(Failed, match=r"^maskgen recipes ended with code 2: .*image/digits-maskgot"):
        maskgen("recipes", "image/digits-maskgot", threads=1)


@pytest.mark.slow
def test_arms_get_equal_processor_seconds_and_pieces_are_kept(
    tmp_path: Path, digits_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskgen.train.bench.maskgen", forked)
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


@pytest.mark.slow
def test_an_arm_may_share_a_training_and_differ_in_how_it_is_sampled(
    tmp_path: Path, digits_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskgen.train.bench.maskgen", forked)
    options = ["--protocol", str(digits_judge), "--metric", "fidelity"]
    file = write(
        tmp_path / "bench.yaml",
        digits_judge,
        evaluate={"num": 20, "along": 0, "options": options, "also": ["evaluations_per_sample"]},
        probe={"methods": ["knn"], "options": ["--num", "60"]},
        groups={},
        arms={
            "one": {"recipe": "digits-maskgit", "options": ["--steps", "1"]},
            "two": {"train_of": "one", "options": ["--steps", "2"]},
            "lame": {"train_of": "one", "options": ["--strata", "1"]},
        },
    )
    home = tmp_path / "out"
    table = run(file=file, output=str(home))
    arms = {arm["arm"]: arm for arm in json.loads((home / "report.json").read_text())["arms"]}
    one, two, lame = arms["one"], arms["two"], arms["lame"]
    assert not (home / "two-seed0" / "run").exists()
    evaluations = [arm["scores"]["nfe_per_sample"]["value"] for arm in (one, two)]
    assert evaluations[1] == 2 * evaluations[0]
    (knn,) = (name for name in one["scores"] if name.startswith("knn["))
    assert one["scores"][knn] == two["scores"][knn] == lame["scores"][knn]
    assert one["cpu_seconds"] == two["cpu_seconds"]
    assert "evaluate: maskgen evaluate ended with code 2" in lame["errors"][0]  # its other scores are there
    assert f"| lame | {lame['scores'][knn]['value']:.3f} | - | - | 1 (1 failed) |" in table
    assert (home / "pareto.png").stat().st_size > 1000

    reports = {path: path.stat().st_mtime_ns for path in home.glob("*-seed0/*.json")}
    assert len(reports) == 5
    assert run(file=file, output=str(home), arms="two").count("\n") == 2
    assert {path: path.stat().st_mtime_ns for path in reports} == reports


@pytest.mark.parametrize("name", experiment_names())
def test_a_shipped_experiment_is_whole(name: str) -> None:
    experiment = read_experiment(None, name)
    assert experiment.summary
    assert experiment.chosen(None) == list(experiment.groups.get("main", experiment.arms))
    for names in experiment.groups.values():
        assert set(names) <= set(experiment.arms)
    for arm in experiment.arms:
        files = [score.file("checkpoint-1") for score in experiment.scores(arm)]
        assert len(set(files)) == len(files) > 0


def test_an_experiment_is_chosen_by_name() -> None:
    with pytest.raises(UserError, match=r"--experiment mage2: unknown; choose from budget, .*masks.*, or give --file"):
        read_experiment(None, "mage2")
    with pytest.raises(UserError, match=r"--experiment masks and --file x.yaml are two experiments"):
        run(experiment="masks", file="x.yaml")


def test_what_would_give_another_score_has_another_report() -> None:
    experiment = Experiment.model_validate(
        {
            "minutes": 1,
            "evaluate": {"num": 9},
            "probe": {},
            "metrics": {"likelihood": {}},
            "arms": {
                "a": {"recipe": "r"},
                "b": {"train_of": "a", "options": ["--steps", "4"]},
                "c": {"train_of": "a", "options": ["--steps", "8"]},
            },
        }
    )
    files = {arm: [score.file("checkpoint-3") for score in experiment.scores(arm)] for arm in "abc"}
    assert files["a"][0] == "checkpoint-3-9.json"
    assert len({files[arm][0] for arm in "abc"}) == len({files[arm][1] for arm in "abc"}) == 3
    assert len({files[arm][2] for arm in "abc"}) == 1  # a probe samples nothing
    assert experiment.along("b") is None


@pytest.mark.parametrize("name", experiment_names())
def test_a_number_of_samples_reaches_every_score_of_samples(name: str) -> None:
    experiment = read_experiment(None, name)
    arm = next(iter(experiment.arms))
    if not any(score.num for score in experiment.scores(arm)):
        with pytest.raises(UserError, match="--num 7: nothing is scored by samples here, only by probe"):
            experiment.with_num(7)
        return
    before, after = (list(one.scores(arm)) for one in (experiment, experiment.with_num(7)))
    assert [score.num for score in after] == [0 if score.key == "probe" else 7 for score in before]
    along = experiment.with_num(7).along(arm)
    assert along is None or along.num == 7


def test_an_arm_may_leave_out_a_score_it_cannot_have() -> None:
    experiment = read_experiment(None, "diffmae")
    keys = {arm: [score.key for score in experiment.scores(arm)] for arm in experiment.arms}
    assert keys["mae"] == ["inpainting", "probe"]
    assert keys["mae-normalised"] == ["probe"]


def test_a_time_that_is_no_time_is_refused() -> None:
    with pytest.raises(UserError, match="--minutes must be above 0 and finite, got nan"):
        run(experiment="masks", minutes=float("nan"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arms: {a: {label: x}}", "arms.a: an arm has either a recipe or train_of"),
        ("arms: {a: {recipe: r}, b: {recipe: r, train_of: a}}", "arms.b: an arm has either a recipe or train_of"),
        ("arms: {a: {recipe: r}, b: {train_of: c}}", r"arm b: train_of c is no arm with a recipe \(a\)"),
        ("arms: {a: {recipe: r}, b: {train_of: a, overrides: [x=1]}}", "arms.b: overrides are of a training"),
        ("{evaluate: null, arms: {a: {recipe: r}}}", "nothing scores the arms"),
        ("{arms: {a: {recipe: r, skip: [probe]}}}", r"arm a: skip probe is no score here \(evaluate\)"),
        ("{arms: {a: {recipe: r, skip: [evaluate]}}}", "arm a: nothing scores it"),
        ("{probe: {methods: [magic]}, arms: {a: {recipe: r}}}", "probe.methods.0: input should be 'linear', 'knn'"),
        ("{probe: {method: [knn]}, arms: {a: {recipe: r}}}", r"probe.method: unknown key; did you mean methods\?"),
    ],
)
def test_an_impossible_experiment_is_refused(tmp_path: Path, content: str, message: str) -> None:
    tree = yaml.safe_load(content) | {"minutes": 1}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=message):
        read_experiment(str(tmp_path / "x.yaml"))


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


def test_every_score_has_a_column_and_two_kinds_a_picture(tmp_path: Path) -> None:
    rows = []
    for seed, accuracy in ((0, 0.5), (1, 0.7)):
        probe = {"step": 2, "cpu_seconds": 120, "num": 9, "key": "probe", "name": "linear_probe[x]", "value": accuracy}
        one = row(seed, 1.0)
        rows.append({**one, "scores": [*one["scores"], probe], "last_step": 2})
    other = row(0, 4.0)
    table = write_reports(tmp_path, "", [*rows, {**other, "arm": "b", "label": "B"}])
    assert "| arm | d | linear_probe[x] | seeds |" in table
    assert "| A | 1.000 ± 0.000 | 0.600 ± 0.100 | 2 | 100 | 10 | 80 | 2.0 M | 0.8 |" in table
    assert "| B | 4.000 | - | 1 |" in table
    assert "pareto.png" in (tmp_path / "report.md").read_text()
    no_picture = tmp_path / "none"
    write_reports(no_picture, "", [other])
    assert not (no_picture / "pareto.png").exists()


def test_an_earlier_checkpoints_score_does_not_stand_for_the_last_ones(tmp_path: Path) -> None:
    one = row(0, 1.0)
    unfinished = {**one, "scores": one["scores"][:1], "last_step": 2, "error": "evaluate: out of memory"}
    arm = summarise([unfinished])
    assert arm["scores"] == {}
    assert "| A | failed: seed 0: evaluate: out of memory |" in write_reports(tmp_path, "", [unfinished])


@pytest.mark.parametrize("name", experiment_names())
def test_every_arm_of_a_shipped_experiment_is_a_valid_recipe(name: str) -> None:
    experiment = read_experiment(name=name)
    for arm in experiment.arms.values():
        if arm.recipe:
            load_recipe(arm.recipe, [*experiment.overrides, *arm.overrides])
    assert {arm for names in experiment.groups.values() for arm in names} <= set(experiment.arms)
