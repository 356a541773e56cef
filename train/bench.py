"""`maskgen bench budget`: recipes trained for equal processor seconds and scored alike, every piece resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskgen.budget import plan
from maskgen.checkpoint import checkpoints_in
from maskgen.errors import UserError
from maskgen.files import require_writable, write_json
from maskgen.recipe import load_recipe
from maskgen.registry import explain
from maskgen.shipped import recipe_text

from .bench_report import write_reports
from .subprocesses import Failed, maskgen

CALIBRATION_STEPS = 24
"""Of each phase."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Part):
    """A recipe that takes part."""

    recipe: str
    label: str = ""
    overrides: tuple[str, ...] = ()


class Scoring(_Part):
    """How every arm is scored: the last checkpoint with `num` samples, `along` earlier ones with `num_along`."""

    num: int = Field(10_000, ge=2)
    along: int = Field(4, ge=0)
    num_along: int = Field(2_000, ge=2)
    options: tuple[str, ...] = ()


class Experiment(_Part):
    """The file of an experiment."""

    summary: str = ""
    minutes: float = Field(gt=0)
    seeds: int = Field(1, ge=1)
    jobs: int = Field(1, ge=1)
    overrides: tuple[str, ...] = ()
    evaluate: Scoring = Scoring()
    groups: Mapping[str, tuple[str, ...]] = {}
    arms: Mapping[str, Arm]

    def chosen(self, names: str | None) -> list[str]:
        """The arms of comma-separated names and groups; the group `main`, or all, for None.

        Raises:
            UserError: a name that is neither.
        """
        if names is None:
            return list(self.groups.get("main", self.arms))
        found: list[str] = []
        for name in filter(None, names.split(",")):
            if name not in self.groups and name not in self.arms:
                raise UserError(f"--arms {name}: unknown; choose from {', '.join([*self.groups, *self.arms])}")
            found += self.groups.get(name, (name,))
        return list(dict.fromkeys(found))


def run(
    *,
    minutes: float | None = None,
    seeds: int | None = None,
    arms: str | None = None,
    num: int | None = None,
    output: str = "runs/bench-budget",
    jobs: int | None = None,
    file: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Run what is missing of an experiment; its table. `overrides` are for the recipes of all arms.

    Raises:
        UserError: a file, arm or output that cannot be used.
    """
    experiment = read_experiment(file)
    names, directory = experiment.chosen(arms), Path(output).expanduser()
    require_writable(directory, output)
    scoring = experiment.evaluate.model_copy(update={} if num is None else {"num": num})
    budget, common = 60 * (minutes or experiment.minutes), (*experiment.overrides, *overrides)
    pieces = [
        Piece(name, experiment.arms[name], seed, common, scoring, budget, directory)
        for seed in range(seeds or experiment.seeds)
        for name in names
    ]
    n_jobs = jobs or experiment.jobs
    threads = 1 if n_jobs > 1 else None
    with ThreadPoolExecutor(n_jobs) as pool:
        plans = dict(zip(names, pool.map(lambda piece: piece.plan(threads), pieces[: len(names)]), strict=True))
        list(pool.map(lambda piece: piece.go(plans[piece.name], threads), pieces))
    return write_reports(directory, experiment.summary, [piece.result() for piece in pieces])


def read_experiment(file: str | None) -> Experiment:
    """An experiment from a YAML file, the shipped one for None.

    Raises:
        UserError: unreadable, an unknown key or a wrong value.
    """
    try:
        text = recipe_text("bench/budget") if file is None else Path(file).expanduser().read_text(encoding="utf-8")
        return Experiment.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise UserError(explain(error.errors(), "", list(Experiment.model_fields))) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--file {file} cannot be read: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class Piece:
    """An arm and a seed: calibrated, trained and scored in processes of its own; what is finished is kept."""

    name: str
    arm: Arm
    seed: int
    common: tuple[str, ...]
    scoring: Scoring
    budget: float
    home: Path

    @property
    def directory(self) -> Path:
        return self.home / f"{self.name}-seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        return [*self.common, *self.arm.overrides, f"seed={self.seed}"]

    def plan(self, threads: int | None) -> int | Exception:
        """Training steps of the arm that take the budget, the same for all its seeds; or why they are not known.

        Raises:
            UserError: an earlier run of the arm in this directory had other settings.
        """
        file, wanted = self.home / f"{self.name}.json", {"budget": self.budget, "arm": self._arm()}
        if file.is_file():
            stored = _read(file)
            if {key: stored[key] for key in wanted} != wanted:
                raise UserError(
                    f"{file} is of another budget or recipe; choose another --output, or remove {self.home}"
                )
            return int(stored["steps"])
        try:
            found = self._calibrate(threads)
        except (UserError, Failed) as error:
            return error
        write_json(file, {**wanted, **found})
        return int(found["steps"])

    def _arm(self) -> dict[str, Any]:
        return self.arm.model_dump(mode="json", exclude={"label"}) | {"common": list(self.common)}

    def _calibrate(self, threads: int | None) -> dict[str, Any]:
        """Some steps of each phase: seconds of a step, weighted by the phases' shares."""
        settings = load_recipe(self.arm.recipe, self.overrides).train
        stretches = plan(settings)
        phases = [{**_phase(settings, one.index), "steps": CALIBRATION_STEPS} for one in stretches]
        trial, n_steps = self.home / f"{self.name}-calibration", CALIBRATION_STEPS * len(phases)
        shutil.rmtree(trial, ignore_errors=True)
        changes = [f"train.phases={json.dumps(phases)}", f"train.steps={n_steps}", f"train.checkpoint_every={n_steps}"]
        maskgen("train", self.arm.recipe, *self.overrides, *changes, "--output", trial, threads=threads)
        spent = _read(trial / "cost.json")["phases"]
        shutil.rmtree(trial)
        seconds = sum(
            len(stretch) / settings.steps * one["cpu_seconds"] / one["steps"]
            for stretch, one in zip(stretches, spent, strict=True)
        )
        return {"seconds_per_step": seconds, "steps": max(1, round(self.budget / seconds)), "phases": spent}

    def go(self, steps: int | Exception, threads: int | None) -> None:
        """Everything that is missing; a failure is written down, and tried again the next time."""
        note = self.directory / "failed.txt"
        self.directory.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        try:
            if isinstance(steps, Exception):
                raise steps
            self._train(steps, threads)
            self._score(threads)
        except (UserError, Failed) as error:
            note.write_text(f"{error}\n", encoding="utf-8")

    def _train(self, steps: int, threads: int | None) -> None:
        home = self.directory / "run"
        if (home / f"checkpoint-{steps}").is_dir():
            return
        every = math.ceil(steps / (self.scoring.along + 1))
        changes = [f"train.steps={steps}", f"train.checkpoint_every={every}", "train.keep_checkpoints=1000"]
        resume = ["--resume"] if checkpoints_in(home) else []
        maskgen("train", self.arm.recipe, *self.overrides, *changes, "--output", home, *resume, threads=threads)

    def _score(self, threads: int | None) -> None:
        """Reports of the checkpoints, the last one first."""
        *earlier, last = checkpoints_in(self.directory / "run")
        for path, num in [(last, self.scoring.num), *((path, self.scoring.num_along) for path in earlier)]:
            report = self.directory / f"{path.name}-{num}.json"
            if not report.is_file():
                options: list[str | Path] = [*self.scoring.options, "--num", str(num), "--output", report]
                maskgen("evaluate", path, *options, threads=threads)

    def result(self) -> dict[str, Any]:
        """What is known of it, for the report; `error` where it failed."""
        row: dict[str, Any] = {"arm": self.name, "label": self.arm.label or self.name, "seed": self.seed, "scores": []}
        note = self.directory / "failed.txt"
        if note.is_file():
            row["error"] = note.read_text(encoding="utf-8").strip()
        for path in checkpoints_in(self.directory / "run"):
            info = _read(path / "checkpoint.json")
            for num in {self.scoring.num, self.scoring.num_along}:
                report = self.directory / f"{path.name}-{num}.json"
                if report.is_file():
                    score = _read(report)["score"]
                    row["scores"].append(
                        {"step": info["step"], "cpu_seconds": info["cpu_seconds"], "num": num, "name": score["name"]}
                        | {"value": score["value"]}
                    )
        cost = self.directory / "run" / "cost.json"
        return row | (_spent(_read(cost)) if cost.is_file() and row["scores"] else {})


def _phase(settings: Any, index: int) -> dict[str, Any]:
    """What a phase says of itself; nothing if the run has none."""
    return settings.phases[index].model_dump(mode="json", exclude_none=True) if settings.phases else {}


def _spent(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, samples and MACs of a whole run."""
    samples = sum(phase["samples"] for phase in cost["phases"])
    return {
        "steps": int(sum(phase["steps"] for phase in cost["phases"])),
        "samples": int(samples),
        "cpu_seconds": cost["cpu_seconds"],
        "parameters": cost["parameters"],
        "macs_per_sample": cost["flops"] / samples / 6,
    }


def _read(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
