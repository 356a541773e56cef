"""Where metrics go besides metrics.jsonl: the trackers of accelerate, and a table in CSV."""

from __future__ import annotations

import csv
import importlib.util
import io
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic
from maskgen.recipes.budget import TrainSettings

WANDB_ID = ".wandb-id"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class CsvTracker:
    """metrics.csv: a line a value, `step,name,value`; lines of later steps than `first` are cut."""

    def __init__(self, directory: Path, first: int) -> None:
        path, kept = directory / "metrics.csv", []
        if path.is_file():
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
            kept = [row for row in rows if len(row) == 3 and row[0].isdigit() and int(row[0]) <= first]
        table = io.StringIO(newline="")
        csv.writer(table).writerows([["step", "name", "value"], *kept])
        with atomic(path) as draft:
            draft.write(table.getvalue().encode())
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._writer.writerows([step, name, repr(value)] for name, value in values.items())
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


def open_trackers(
    directory: Path, first: int, settings: TrainSettings, say: Callable[[str], None]
) -> list[CsvTracker | GeneralTracker]:
    """The trackers a recipe names; one whose package is not installed is said and left out."""
    names = [*settings.trackers, *(["tensorboard"] if settings.tensorboard else [])]
    trackers: list[CsvTracker | GeneralTracker] = []
    for name in dict.fromkeys(names):
        if name == "csv":
            trackers.append(CsvTracker(directory, first))
        elif importlib.util.find_spec(PACKAGES[name]) is None:
            say(f"{name} is not installed (pip install {PACKAGES[name]}): left out")
        else:
            trackers.append(_open(name, directory, first))
    return trackers


def run_id(directory: Path, first: int) -> str:
    """The id of a run for wandb: drawn at its start and kept in the run directory."""
    file = directory / WANDB_ID
    if first == 0 or not file.is_file():
        with atomic(file) as out:
            out.write(uuid.uuid4().hex[:16].encode())
    return file.read_text(encoding="utf-8").strip()


def _open(name: str, directory: Path, first: int) -> GeneralTracker:
    """A tracker of accelerate; TensorBoard hides what an interrupted run wrote after `first`."""
    tracker = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        opened = tracker("logs", directory, purge_step=first + 1)
    else:
        opened = tracker(
            "maskgen", name=directory.name, dir=str(directory), id=run_id(directory, first), resume="allow"
        )
    try:
        opened.start()
    except Exception as error:  # wandb's own errors: no key, no network
        raise UserError(
            f"train.trackers: {name} cannot start ({first_line(error)}); log in, set WANDB_MODE=offline, or leave it "
            "out"
        ) from None
    return opened
