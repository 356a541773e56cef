"""Lock, signals, retention, status and trackers of a run."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core import lock
from maskgen.core.errors import UserError
from maskgen.core.lock import RunLock
from maskgen.data.base import DataError, ImageSplit
from maskgen.data.loader import CounterSampler, batches
from maskgen.recipes.budget import TrainSettings
from maskgen.train import status
from maskgen.train.callbacks import Log
from maskgen.train.failures import forget_failures, share_failure
from maskgen.train.program import run
from maskgen.train.signals import Signals, Stopped
from maskgen.train.state import best_of, prune
from maskgen.train.status import Status
from maskgen.train.trackers import CsvTracker, run_id

Command = Callable[..., tuple[int, str, str]]


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert lock.is_held(tmp_path)
        with pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on {socket.gethostname()}"):
            RunLock(tmp_path).__enter__()
    assert not lock.is_held(tmp_path)
    with RunLock(tmp_path):
        pass


def test_a_lock_is_touched_again_after_a_touch_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touches: list[Path] = []

    def touch(path: Path) -> None:
        touches.append(path)
        if len(touches) == 1:
            raise OSError(errno.EIO, "the disk is away")

    held = RunLock(tmp_path)
    waits = iter([False, False, True])
    monkeypatch.setattr(held, "_is_over", SimpleNamespace(wait=lambda _: next(waits)))
    monkeypatch.setattr("os.utime", touch)
    held._touch()
    assert touches == [tmp_path / ".lock"] * 2


@pytest.mark.parametrize(("age", "is_alive"), [(0, True), (1000, False)])
def test_a_holder_on_another_host_is_believed_while_it_touches_its_lock(
    tmp_path: Path, age: float, is_alive: bool
) -> None:
    file = tmp_path / ".lock"
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    moment = file.stat().st_mtime - age
    os.utime(file, (moment, moment))
    assert lock.is_held(tmp_path) is is_alive
    if is_alive:
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            RunLock(tmp_path).__enter__()
    else:
        with RunLock(tmp_path):
            pass


def test_a_damaged_lock_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid": 3')
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_an_end_and_handlers_are_put_back(number: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.is_deferred = True
        os.kill(os.getpid(), number)
        assert signals.stop == number
    assert signal.getsignal(number) == before
    assert Stopped(number, 3).code == 128 + number


def test_the_echo_of_a_signal_is_not_a_second_one() -> None:
    with Signals() as signals:
        signals.is_deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
        assert signals.stop == signal.SIGTERM


def test_before_there_are_steps_an_end_does_not_wait() -> None:
    with Signals(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


def test_a_user_signal_asks_for_a_checkpoint() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.is_saving
        assert not signals.stop


def test_work_that_may_be_cut_short_is_and_only_then() -> None:
    done: list[int] = []

    def work() -> str:
        done.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(2)
        return "answer"

    with Signals() as signals:
        signals.is_deferred = True
        assert signals.attempt(lambda: 7) == 7
        assert signals.attempt(work) is None
        assert signals.attempt(lambda: 7) is None
    assert done == [1]


def checkpoints(home: Path, scores: dict[int, float | None]) -> None:
    for step, score in scores.items():
        path = home / f"checkpoint-{step}"
        path.mkdir()
        validation = {} if score is None else {"loss": score}
        (path / "checkpoint.json").write_text(json.dumps({"step": step, "validation": validation}))


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"keep_checkpoints": 2}, {60, 70}),
        ({"keep_checkpoints": 1, "keep_every": 30}, {30, 60, 70}),
        ({"keep_checkpoints": 1, "keep_best": {"metric": "loss"}}, {20, 70}),
        ({"keep_checkpoints": 1, "keep_best": {"metric": "loss", "mode": "max"}}, {40, 70}),
        ({"keep_checkpoints": 1, "keep_best": {"metric": "accuracy"}}, {70}),
        ({"keep_checkpoints": 1, "keep_every": 30, "keep_best": {"metric": "loss"}}, {20, 30, 60, 70}),
    ],
)
def test_checkpoints_are_kept_by_their_rules(tmp_path: Path, settings: dict[str, Any], left: set[int]) -> None:
    checkpoints(tmp_path, {10: 3.0, 20: 1.0, 30: float("nan"), 40: 9.0, 50: 1.0, 60: None, 70: 2.0})
    prune(tmp_path, TrainSettings.model_validate(settings))
    assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == left


def test_the_best_is_the_earlier_of_equals_and_survives_damage_of_others(tmp_path: Path) -> None:
    checkpoints(tmp_path, {1: 2.0, 2: 1.0, 3: 1.0})
    (tmp_path / "checkpoint-1" / "checkpoint.json").write_text("{")
    paths = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert best_of(paths, TrainSettings.model_validate({"keep_best": {"metric": "loss"}})) == paths[1]
    assert best_of(paths, TrainSettings()) is None


def test_runs_are_listed_with_state_step_score_and_error(tmp_path: Path, command: Command) -> None:
    for name, state, error in (("a", "finished", ""), ("b", "failed", "the loss was NaN\nmore"), ("c", "running", "")):
        (tmp_path / name).mkdir()
        Status(tmp_path / name, "digits-maskgit", 20).write(state, 7, {"loss": 1.25}, error)  # type: ignore[arg-type]
    checkpoints(tmp_path / "a", {})
    (tmp_path / "old" / "checkpoint-3").mkdir(parents=True)
    code, out, _ = command("runs", tmp_path)
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "finished" in rows["a"]
    assert "7 / 20" in rows["a"]
    assert "loss 1.25" in rows["a"]
    Status(tmp_path / "a", "r", 20).write("finished", 20, shares={"saving": 0.01, "logging": 0.002, "steps": 0.9})
    assert "1.2%" in next(line for line in command("runs", tmp_path)[1].splitlines() if line.startswith("a "))
    assert rows["b"].endswith("the loss was NaN")
    assert "killed" in rows["c"]
    assert rows["old"].split() == ["old", "?", "?", "3"]
    with RunLock(tmp_path / "c"):
        assert "running" in command("runs", tmp_path)[1]


@pytest.mark.parametrize("content", ['{"state": "ok"}', "[1, 2]", '{"step": "3"}', "{"])
def test_a_status_of_another_program_is_no_run(tmp_path: Path, command: Command, content: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "status.json").write_text(content)
    code, out, _ = command("runs", tmp_path)
    assert (code, "no runs in" in out) == (0, True)


def test_a_status_that_may_not_be_read_is_unknown(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Status(tmp_path, "r", 9).write("running", 4)
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("maskgen.train.status.read", lambda _: {})
    assert command("runs", tmp_path)[1].splitlines()[1].split() == [".", "?", "?", "?"]


def test_a_running_run_whose_lock_may_not_be_opened_is_unknown(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Status(tmp_path, "r", 9).write("running", 4)

    def refused(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr("maskgen.train.runs.lock.is_held", refused)
    assert "unknown" in command("runs", tmp_path)[1]


def test_a_wandb_run_is_known_by_an_id_of_its_own_that_a_resume_keeps(tmp_path: Path) -> None:
    ids = {}
    for home in ("a/run", "b/run"):
        (tmp_path / home).mkdir(parents=True)
        ids[home] = run_id(tmp_path / home, 0)
        assert run_id(tmp_path / home, 5) == ids[home]
    assert ids["a/run"] != ids["b/run"]
    assert run_id(tmp_path / "a/run", 0) != ids["a/run"]


def test_a_table_survives_a_start_that_cannot_write_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = CsvTracker(tmp_path, 0)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CsvTracker(tmp_path, 1)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_keeping_the_best_needs_a_validation() -> None:
    with pytest.raises(ValueError, match="keep_best needs a validation"):
        TrainSettings.model_validate({"keep_best": {"metric": "loss"}, "validation_rows": 0})


def test_a_directory_without_runs_is_said(tmp_path: Path, command: Command) -> None:
    code, out, _ = command("runs", tmp_path)
    assert (code, f"no runs in {tmp_path}; `maskgen train" in out) == (0, True)
    assert "no directory" in command("runs", tmp_path / "gone")[2]


def test_a_status_keeps_what_it_is_not_told(tmp_path: Path) -> None:
    said = Status(tmp_path, "r", 9)
    said.write("running", 4, {"loss": 2.0})
    said.write("failed", error="boom")
    found = status.read(tmp_path)
    assert (found["state"], found["step"], found["scores"], found["error"]) == ("failed", 4, {"loss": 2.0}, "boom")


def test_a_csv_table_has_a_line_a_value_and_is_cut_on_resume(tmp_path: Path) -> None:
    settings = TrainSettings(steps=9, tensorboard=False, trackers=("csv",))
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = Log(tmp_path, first, settings, is_main=True)
        for step in steps:
            log.metrics(step, {"loss": step / 3}, "train")
        log.close()
    rows = list(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows == [["step", "name", "value"], *([str(n), "train/loss", repr(n / 3)] for n in (1, 2, 3, 4))]


def test_tensorboard_is_written_by_accelerates_tracker(tmp_path: Path) -> None:
    log = Log(tmp_path, 0, TrainSettings(steps=1), is_main=True)
    log.metrics(1, {"loss": 1.0}, "train")
    log.close()
    assert list((tmp_path / "logs").glob("events.out.*"))


class Deadly(ImageSplit):
    """Rows of which one kills the process that reads it."""

    labels = torch.zeros(20)

    def fingerprint(self) -> str:
        return "deadly"

    def name_of(self, row: int) -> str:
        return f"picture-{row}.png"

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if 13 in indices and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(len(indices)), torch.as_tensor(indices)


class Slow(Deadly):
    """Rows that say by whom they were read."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.full((len(indices),), os.getpid()), torch.as_tensor(indices)


def test_a_worker_outlives_a_signal_to_the_group() -> None:
    loader = batches(Slow(), CounterSampler(20, 4, 0), workers=1)
    worker = int(next(loader)[0][0])
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGTERM)
    for _ in range(4):
        assert int(next(loader)[0][0]) == worker


class Unreadable(Deadly):
    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if 13 in indices:
            raise DataError("folder/13.png cannot be read: no picture")
        return super().__getitems__(indices)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Deadly(), r"^a data worker died reading picture-13.png: remove or mend it"),
        (Unreadable(), r"^folder/13.png cannot be read: no picture$"),
    ],
)
def test_a_sample_that_ends_a_worker_is_named_in_a_line(data: Deadly, message: str) -> None:
    loader = batches(data, CounterSampler(20, 4, 0), workers=1)
    with pytest.raises(DataError, match=message) as error:
        list(itertools.islice(loader, 5))
    assert "\n" not in str(error.value)


def test_a_lost_connection_is_reported_as_what_the_other_process_died_of(tmp_path: Path) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    own = DataError("picture-13.png cannot be read\nsecond line")
    assert share_failure(tmp_path, 1, own) is own
    assert str(share_failure(tmp_path, 0, lost)) == "process 1 failed: picture-13.png cannot be read"
    forget_failures(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lost_connection_that_no_process_explains_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgen.train.failures.PATIENCE", 0.0)
    lost, other = RuntimeError("Connection closed by peer"), RuntimeError("shapes do not fit")
    assert share_failure(tmp_path, 0, lost) is lost
    share_failure(tmp_path, 1, other)
    assert share_failure(tmp_path, 0, other) is other, "an error of its own"


@pytest.mark.slow
def test_wandb_keeps_the_metrics_of_a_run_that_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    small = ["model.width=8", "model.depth=1", "model.heads=2", "train.batch_size=4", "train.tensorboard=false"]
    brief = ["train.steps=3", "train.log_every=1", "train.preview_every=0", "train.trackers=[wandb]"]
    run("digits-maskgit", [*small, *brief], str(tmp_path / "run"), device="cpu")
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    name = (tmp_path / "run" / ".wandb-id").read_text().strip()
    assert name in kept.name
    assert kept.read_bytes().count(b"train/grad_norm") >= 3  # a record a step
