"""The file of an experiment: arms, and how each is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.core.registry import explain
from maskgen.core.yaml_reader import YamlError, read_yaml
from maskgen.recipes.shipped import experiment_names, recipe_text

NOT_OF_SAMPLES = ("likelihood", "probe")
"""Metrics that have no number of samples."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Part):
    """A recipe of the experiment; or, with `train_of`, the network of another arm, scored with other `options`."""

    recipe: str = ""
    label: str = ""
    overrides: tuple[str, ...] = ()
    train_of: str = Field("", description="another arm, whose training this one shares")
    options: tuple[str, ...] = Field((), description="of `maskgen evaluate`, after those of the experiment")
    skip: tuple[str, ...] = Field((), description="scores it cannot have: evaluate, probe or the name of a metric")

    @model_validator(mode="after")
    def _trains_or_takes(self) -> Arm:
        if bool(self.recipe) == bool(self.train_of):
            raise ValueError("an arm has either a recipe or train_of")
        if self.train_of and self.overrides:
            raise ValueError(f"overrides are of a training; that of {self.train_of} is taken as it is")
        return self


class Scoring(_Part):
    """How every arm is scored: the last checkpoint with `num` samples, `along` earlier ones with `num_along`.

    `also` names other numbers of the report that get a column: class_accuracy, nfe_per_sample.
    """

    num: int = Field(10_000, ge=2)
    along: int = Field(4, ge=0)
    num_along: int = Field(2_000, ge=2)
    options: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


class Probing(_Part):
    """`maskgen probe` of the last checkpoint."""

    methods: tuple[Literal["linear", "knn", "finetune", "retrieval", "inversion"], ...] = Field(
        ("linear", "knn"), min_length=1
    )
    options: tuple[str, ...] = ()


class Measure(_Part):
    """A further metric of `maskgen evaluate`, of the last checkpoint; `also` as in `Scoring`."""

    num: int | None = Field(None, ge=2)
    options: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A report to be made of a checkpoint: `maskgen COMMAND CHECKPOINT OPTIONS`.

    Attributes:
        key: `evaluate`, `probe` or the name of a metric.
        command: `evaluate` or `probe`.
        options: of the command.
        also: names of further numbers of the report to include.
        num: samples, where they are said.
    """

    key: str
    command: str
    options: tuple[str, ...]
    also: tuple[str, ...] = ()
    num: int = 0

    def file(self, checkpoint: str) -> str:
        """The name of the report; it differs for settings that give another score."""
        facts = json.dumps([self.command, self.options]).encode()
        mark = [hashlib.sha256(facts).hexdigest()[:8]] if self.options else []
        key = [] if self.key == "evaluate" else [self.key]
        return "-".join([checkpoint, *key, *mark, *([str(self.num)] if self.num else [])]) + ".json"

    def arguments(self, checkpoint: Path, report: Path) -> list[str | Path]:
        """Of `maskgen`."""
        num = ["--num", str(self.num)] if self.num else []
        return [self.command, checkpoint, *self.options, *num, "--output", report]


class Experiment(_Part):
    """The file of an experiment."""

    summary: str = ""
    minutes: float = Field(gt=0, allow_inf_nan=False)
    seeds: int = Field(1, ge=1)
    jobs: int = Field(1, ge=1)
    overrides: tuple[str, ...] = ()
    evaluate: Scoring | None = Field(Scoring(), description="null: no score by `maskgen evaluate` as it is by default")
    probe: Probing | None = None
    metrics: Mapping[str, Measure] = {}
    groups: Mapping[str, tuple[str, ...]] = {}
    arms: Mapping[str, Arm]

    @model_validator(mode="after")
    def _is_whole(self) -> Experiment:
        for name, arm in self.arms.items():
            if arm.train_of and not (arm.train_of in self.arms and self.arms[arm.train_of].recipe):
                trained = ", ".join(other for other, one in self.arms.items() if one.recipe)
                raise ValueError(f"arm {name}: train_of {arm.train_of} is no arm with a recipe ({trained})")
        if self.evaluate is None and self.probe is None and not self.metrics:
            raise ValueError("nothing scores the arms: give evaluate, probe or metrics")
        for name, arm in self.arms.items():
            if unknown := sorted({*arm.skip} - {*self._keys()}):
                raise ValueError(f"arm {name}: skip {unknown[0]} is no score here ({', '.join(self._keys())})")
            if {*arm.skip} == {*self._keys()}:
                raise ValueError(f"arm {name}: nothing scores it, it skips all")
        return self

    def _keys(self) -> list[str]:
        """Of the scores of an arm that skips none."""
        pairs = (("evaluate", self.evaluate), ("probe", self.probe))
        return [*(key for key, part in pairs if part is not None), *self.metrics]

    def with_num(self, num: int | None) -> Experiment:
        """The experiment with `num` samples for every score of samples, at most that for earlier checkpoints.

        Raises:
            UserError: there is no such score.
        """
        if num is None:
            return self
        changed: dict[str, object] = {}
        if self.evaluate is not None:
            few = {"num": num, "num_along": min(num, self.evaluate.num_along)}
            changed["evaluate"] = self.evaluate.model_copy(update=few)
        sampled = {name: one for name, one in self.metrics.items() if name not in NOT_OF_SAMPLES}
        if not changed and not sampled:
            scores = ", ".join(self._keys())
            raise UserError(f"--num {num}: nothing is scored by samples here, only by {scores}; leave it out")
        with_num = {name: one.model_copy(update={"num": num}) for name, one in sampled.items()}
        return self.model_copy(update={**changed, "metrics": {**self.metrics, **with_num}})

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

    def training_of(self, name: str) -> str:
        """The arm whose network an arm is scored with: itself, or the one it names."""
        return self.arms[name].train_of or name

    def scores(self, name: str) -> Iterator[Score]:
        """The scorings of the last checkpoint of an arm."""
        skipped = self.arms[name].skip
        return (score for score in self._scores(self.arms[name].options) if score.key not in skipped)

    def _scores(self, own: tuple[str, ...]) -> Iterator[Score]:
        """All scorings, with the sampling options of an arm."""
        if self.evaluate is not None:
            one = self.evaluate
            yield Score("evaluate", "evaluate", (*one.options, *own), one.also, one.num)
        for metric, measure in self.metrics.items():
            options = ("--metric", metric, *measure.options, *own)
            yield Score(metric, "evaluate", options, measure.also, measure.num or 0)
        if self.probe is not None:
            methods = [word for method in self.probe.methods for word in ("--method", method)]
            yield Score(
                "probe",
                "probe",
                (*methods, *self.probe.options),
                ("linear_probe", "knn", "finetune", "retrieval_top1", "inversion_accuracy"),
            )

    def along(self, name: str) -> Score | None:
        """The scorings of earlier checkpoints, for arms with a training of their own."""
        arm = self.arms[name]
        if self.evaluate is None or not self.evaluate.along or arm.train_of or "evaluate" in arm.skip:
            return None
        options = (*self.evaluate.options, *arm.options)
        return Score("evaluate", "evaluate", options, num=self.evaluate.num_along)


def read_experiment(file: str | None = None, name: str = "budget") -> Experiment:
    """An experiment from a YAML file, or a shipped one by name.

    Raises:
        UserError: unknown, unreadable, an unknown key or a wrong value.
    """
    if file is None and name not in experiment_names():
        raise UserError(f"--experiment {name}: unknown; choose from {', '.join(experiment_names())}, or give --file")
    try:
        text = recipe_text(f"bench/{name}") if file is None else local_path(file).read_text(encoding="utf-8")
        return Experiment.model_validate(read_yaml(text))
    except ValidationError as error:
        raise UserError("\n".join(_explained(error))) from None
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise UserError(f"--file {file} cannot be read: {first_line(error)}") from None


def _explained(error: ValidationError) -> Iterator[str]:
    """One line per error, with the keys accepted at its place."""
    parts: dict[str, type[BaseModel]] = {"arms": Arm, "evaluate": Scoring, "probe": Probing, "metrics": Measure}
    for fault in error.errors():
        place = parts.get(str(fault["loc"][0]), Experiment) if len(fault["loc"]) > 1 else Experiment
        if fault["type"] == "value_error":  # the input is the whole part
            key = ".".join(map(str, fault["loc"]))
            yield f"{key}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        else:
            yield explain([fault], "", list(place.model_fields))
