"""`maskgen bench budget`: trains recipes for equal CPU seconds and scores them alike; every part resumes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.checkpoints.checkpoint import checkpoints_in
from maskgen.core.errors import UserError
from maskgen.core.files import local_path, read_json, require_writable, write_json
from maskgen.evaluation.report import present_name
from maskgen.recipes.budget import TrainSettings, plan
from maskgen.recipes.load import load_recipe

from .bench_report import write_reports
from .experiment import Arm, Experiment, Score, read_experiment
from .subprocesses import Failed, maskgen

CALIBRATION_STEPS = 24
"""Of each phase."""


def run(
    *,
    experiment: str | None = None,
    minutes: float | None = None,
    seeds: int | None = None,
    arms: str | None = None,
    num: int | None = None,
    output: str | None = None,
    jobs: int | None = None,
    file: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Run the missing parts of an experiment; returns its table. `overrides` apply to the recipes of all arms.

    Raises:
        UserError: an experiment, file, arm or output that cannot be used.
    """
    if experiment is not None and file is not None:
        raise UserError(f"--experiment {experiment} and --file {file} are two experiments; give one")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0 and finite, got {minutes}")
    name = experiment or "budget"
    definition = read_experiment(file, name).with_num(num)
    names, home = definition.chosen(arms), local_path(output or f"runs/bench-{name}")
    require_writable(home, str(home))
    trained = list(dict.fromkeys(map(definition.training_of, names)))
    budget, common = 60 * (minutes or definition.minutes), (*definition.overrides, *overrides)
    along = definition.evaluate.along if definition.evaluate else 0
    pieces = [
        Training(one, definition.arms[one], seed, common, along, budget, home)
        for seed in range(seeds or definition.seeds)
        for one in trained
    ]
    arms_of = {one: [name for name in names if definition.training_of(name) == one] for one in trained}
    scorings = [[Scored(definition, name, piece) for name in arms_of[piece.name]] for piece in pieces]
    _run_all(pieces, scorings, len(trained), jobs or definition.jobs)
    found = {(one.name, one.training.seed): one.result() for scored in scorings for one in scored}
    rows = [found[name, seed] for seed in range(seeds or definition.seeds) for name in names]
    return write_reports(home, definition.summary, rows)


def _run_all(pieces: Sequence[Training], scorings: Sequence[Sequence[Scored]], n_arms: int, n_jobs: int) -> None:
    """Train and score all pieces, `n_jobs` at a time; the first `n_arms` pieces are one of each trained arm."""
    threads = 1 if n_jobs > 1 else None
    with ThreadPoolExecutor(n_jobs) as pool:
        plans = pool.map(lambda piece: piece.plan(threads), pieces[:n_arms])
        steps = {piece.name: plan for piece, plan in zip(pieces, plans, strict=False)}
        list(pool.map(lambda piece, scored: _go(piece, scored, steps[piece.name], threads), pieces, scorings))


def _go(training: Training, scored: Sequence[Scored], steps: int | Exception, threads: int | None) -> None:
    """Run the missing parts of a training and of the arms scored with it.

    A failure is recorded and retried the next time.
    """
    fault = _attempt(training.directory, lambda: training.train(steps, threads))
    for one in scored:
        if fault is None:
            one.score(threads)
        elif one.directory != training.directory:
            write_note(one.directory, [fault])


def _attempt(directory: Path, work: Callable[[], None]) -> str | None:
    """The recorded error, or None."""
    write_note(directory, [])
    try:
        work()
    except (UserError, Failed) as error:
        write_note(directory, [str(error)])
        return str(error)
    return None


def write_note(directory: Path, faults: Sequence[str]) -> None:
    """Write the errors to failed.txt; remove the file if there are none."""
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / "failed.txt"
    if faults:
        note.write_text("\n".join(faults) + "\n", encoding="utf-8")
    else:
        note.unlink(missing_ok=True)


@dataclass(frozen=True)
class Training:
    """An arm and a seed: calibrated and trained in separate processes; finished parts are kept."""

    name: str
    arm: Arm
    seed: int
    common: tuple[str, ...]
    along: int
    budget: float
    home: Path

    @property
    def directory(self) -> Path:
        return self.home / f"{self.name}-seed{self.seed}"

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def overrides(self) -> list[str]:
        return [*self.common, *self.arm.overrides, f"seed={self.seed}"]

    def plan(self, threads: int | None) -> int | Exception:
        """Number of training steps that use the budget, the same for all seeds of the arm; or the error.

        Raises:
            UserError: an earlier run of the arm in this directory had other settings.
        """
        file, settings = self.home / f"{self.name}.json", {"budget": self.budget, "arm": self._arm()}
        if file.is_file():
            stored = read_json(file)
            if {key: stored[key] for key in settings} != settings:
                raise UserError(
                    f"{file} is of another budget or recipe; choose another --output, or remove {self.home}"
                )
            return int(stored["steps"])
        try:
            found = self._calibrate(threads)
        except (UserError, Failed) as error:
            return error
        write_json(file, {**settings, **found})
        return int(found["steps"])

    def _arm(self) -> dict[str, object]:
        """The settings that the training depends on."""
        return self.arm.model_dump(mode="json", include={"recipe", "overrides"}) | {"common": list(self.common)}

    def _calibrate(self, threads: int | None) -> dict[str, Any]:
        """Measure some steps of each phase: seconds per step, weighted by the phases' shares."""
        settings = load_recipe(self.arm.recipe, self.overrides).train
        stretches = plan(settings)
        phases = [{**_phase(settings, one.index), "steps": CALIBRATION_STEPS} for one in stretches]
        trial, n_steps = self.home / f"{self.name}-calibration", CALIBRATION_STEPS * len(phases)
        shutil.rmtree(trial, ignore_errors=True)
        changes = [f"train.phases={json.dumps(phases)}", f"train.steps={n_steps}", f"train.checkpoint_every={n_steps}"]
        maskgen("train", self.arm.recipe, *self.overrides, *changes, "--output", trial, threads=threads)
        spent = read_json(trial / "cost.json")["phases"]
        shutil.rmtree(trial)
        seconds = sum(
            len(stretch) / settings.steps * one["cpu_seconds"] / one["steps"]
            for stretch, one in zip(stretches, spent, strict=True)
        )
        return {"seconds_per_step": seconds, "steps": max(1, round(self.budget / seconds)), "phases": spent}

    def train(self, steps: int | Exception, threads: int | None) -> None:
        """Train or resume, unless the training is finished.

        Raises:
            UserError, Failed: the training failed.
        """
        if isinstance(steps, Exception):
            raise steps
        if (self.run / f"checkpoint-{steps}").is_dir():
            return
        every = math.ceil(steps / (self.along + 1))
        changes = [f"train.steps={steps}", f"train.checkpoint_every={every}", "train.keep_checkpoints=1000"]
        resume = ["--resume"] if checkpoints_in(self.run) else []
        maskgen("train", self.arm.recipe, *self.overrides, *changes, "--output", self.run, *resume, threads=threads)


@dataclass(frozen=True)
class Scored:
    """An arm, scored with the network of a training."""

    experiment: Experiment
    name: str
    training: Training

    @property
    def directory(self) -> Path:
        return self.training.home / f"{self.name}-seed{self.training.seed}"

    def score(self, threads: int | None) -> None:
        """Write the missing reports; an error of one does not stop the others."""
        faults = []
        self.directory.mkdir(parents=True, exist_ok=True)
        for path, score in self._wanted():
            report = self.directory / score.file(path.name)
            if not report.is_file():
                try:
                    maskgen(*score.arguments(path, report), threads=threads)
                except Failed as error:
                    faults.append(f"{score.key}: {error}")
        write_note(self.directory, faults)

    def _wanted(self) -> Iterator[tuple[Path, Score]]:
        """Checkpoints and their scorings, the last checkpoint first."""
        paths = checkpoints_in(self.training.run)
        yield from ((path, score) for path in paths[-1:] for score in self.experiment.scores(self.name))
        along = self.experiment.along(self.name)
        if along is not None:
            yield from ((path, along) for path in paths[:-1])

    def result(self) -> dict[str, object]:
        """The results for the report, with `error` where something failed."""
        arm = self.experiment.arms[self.name]
        row: dict[str, object] = {"arm": self.name, "label": arm.label or self.name, "seed": self.training.seed}
        note = self.directory / "failed.txt"
        if note.is_file():
            row["error"] = note.read_text(encoding="utf-8").strip()
        row["scores"] = [found for path, score in self._wanted() for found in self._read(path, score)]
        row["last_step"] = max((read_json(path / "checkpoint.json")["step"] for path, _ in self._wanted()), default=0)
        cost = self.training.run / "cost.json"
        return row | (_spent(read_json(cost)) if cost.is_file() and row["scores"] else {})

    def _read(self, path: Path, score: Score) -> Iterator[dict[str, object]]:
        """The selected numbers of a report: its score, and others of the same samples."""
        file = self.directory / score.file(path.name)
        if not file.is_file():
            return
        info, report = read_json(path / "checkpoint.json"), read_json(file)
        first = report["score"]
        also = {present_name(name) for name in score.also}
        named = [entry | {"name": present_name(entry["name"])} for entry in report["others"]]
        others = [entry for entry in named if entry["of"] == first["of"] and entry["name"].split("[")[0] in also]
        for entry in [first, *others]:
            at = {"step": info["step"], "cpu_seconds": info["cpu_seconds"], "key": score.key}
            num = score.num or entry["n_samples"] or 0
            yield at | {"num": num, "name": entry["name"], "value": float(entry["value"])}


def _phase(settings: TrainSettings, index: int) -> dict[str, object]:
    """The label of a phase; empty if the run has one phase only."""
    return settings.phases[index].model_dump(mode="json", exclude_none=True) if settings.phases else {}


def _spent(cost: Mapping[str, Any]) -> dict[str, object]:
    """Steps, samples and MACs of a whole run."""
    samples = sum(phase["samples"] for phase in cost["phases"])
    return {
        "steps": int(sum(phase["steps"] for phase in cost["phases"])),
        "samples": int(samples),
        "cpu_seconds": cost["cpu_seconds"],
        "parameters": cost["parameters"],
        "macs_per_sample": cost["flops"] / samples / 6,
    }
