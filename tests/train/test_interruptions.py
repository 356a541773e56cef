"""What may happen to a run from outside: closed output, moved data, hung workers, damaged files, no memory."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.core.console import Surviving, surviving_output
from maskgen.core.errors import OutOfMemory, UserError, is_out_of_memory
from maskgen.data.base import DataError
from maskgen.data.loader import CounterSampler, batches
from maskgen.train.callbacks import Log, drop_after
from maskgen.train.program import run
from maskgen.train.signals import Signals, Stopped
from maskgen.train.state import clean, prune
from maskgen.train.status import Status, read

Command = Callable[..., tuple[int, str, str]]
TINY = [
    *("model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=4", "train.warmup=1", "train.log_every=1"),
    *("train.preview_every=0", "train.validation_rows=0", "train.tensorboard=false", "train.checkpoint_every=2"),
]


def pictures(folder: Path) -> Path:
    """Two classes of six pictures each."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((8, 8), 20 * index + 100 * (name == "dog"), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def train(output: Path, data: Path | str, *overrides: str, resume: bool | str = False) -> Path:
    spec = f"data={{type: folder, path: '{data}', size: 8, channels: 1}}"
    return run("image/digits-maskgit", [spec, *TINY, *overrides], str(output), resume, "cpu")  # type: ignore[arg-type]


def test_a_run_goes_on_where_its_data_are_spelled_otherwise_or_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    folder, output = pictures(tmp_path / "pictures"), tmp_path / "run"
    train(output, folder, "train.steps=2")
    monkeypatch.chdir(tmp_path)
    for step, place in ((3, "pictures"), (4, f"{folder}/"), (5, f"{tmp_path}/./pictures")):
        assert train(output, place, f"train.steps={step}", resume=True).name == f"checkpoint-{step}"
    shutil.copytree(folder, tmp_path / "copy")
    assert train(output, tmp_path / "copy", "train.steps=6", resume=True).name == "checkpoint-6"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "copy" / "cat" / "9.png")
    with pytest.raises(UserError, match="was trained on other data"):
        train(output, tmp_path / "copy", "train.steps=7", resume=True)


def test_what_changed_is_named_with_both_values_and_what_may_change_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "run"
    run("image/digits-maskgit", [*TINY, "train.steps=2"], str(output), False, "cpu")
    with pytest.raises(UserError, match=r"trained with another model \(model\.width 16 -> 32\); resume with the same"):
        run("image/digits-maskgit", [*TINY, "train.steps=3", "model.width=32"], str(output), True, "cpu")
    capsys.readouterr()
    run("image/digits-maskgit", [*TINY, "train.steps=3", "train.lr=0.01"], str(output), True, "cpu")
    assert "train.lr 0.003 -> 0.01; train.steps 2 -> 3" in capsys.readouterr().err


def test_resume_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(tmp_path: Path, command: Command) -> None:
    words = ["train", "image/digits-maskgit", *TINY, "--output", tmp_path / "run", "--resume"]
    assert command(*words, "auto", "train.steps=2")[0] == 0
    code, out, _ = command(*words, "auto", "train.steps=3")
    assert (code, "checkpoint-3" in out) == (0, True)
    assert command(*words, "train.steps=4")[0] == 0, "an override after --resume is an override"
    assert command("train", "image/digits-maskgit", "--output", tmp_path / "new", "--resume")[0] == 2


def test_a_training_goes_on_when_nothing_reads_its_output(tmp_path: Path) -> None:
    words = ["train", "image/digits-maskgit", *TINY, "train.steps=5", "--output", str(tmp_path / "run")]
    program = "import sys; from maskgen.cli import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program, *words], stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "run" / "checkpoint-5" / "model.safetensors").is_file()


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_only_the_loss_of_a_reader_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.EPIPE, errno.EIO):
        assert Surviving(Broken(number)).write("four") == 4
    with pytest.raises(OSError, match="space"):
        Surviving(Broken(errno.ENOSPC)).write("x")
    before = sys.stdout, sys.stderr
    with surviving_output():
        assert isinstance(sys.stdout, Surviving)
    assert (sys.stdout, sys.stderr) == before


def test_a_log_that_is_no_terminal_gets_lines_and_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskgen.recipes.budget import TrainSettings

    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    log = Log(tmp_path, 0, TrainSettings(steps=6, tensorboard=False), is_main=True)
    for step in range(1, 7):
        log.metrics(step, {"loss": 1.5}, "train")
        log.advance()
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    assert "loss 1.5" in lines[0]


class Hung(Dataset[tuple[Tensor, Tensor]]):
    """Rows of which the second batch never comes."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        if max(indices) >= 4:
            time.sleep(60)
        return torch.tensor(indices), torch.zeros(len(indices))


class Rising(CounterSampler):
    """Rows in order."""

    def indices(self, batch: int) -> list[int]:
        return list(range(4 * batch, 4 * batch + 4))


def test_a_hung_data_worker_ends_the_wait_with_a_message() -> None:
    rows = batches(Hung(), Rising(8, 4, 0), workers=1, timeout=1.0)
    next(rows)
    with pytest.raises(DataError, match=r"no batch from the data workers for 1 s.*train\.worker_timeout"):
        next(rows)


def test_a_signal_ends_the_wait_for_a_hung_worker() -> None:
    from maskgen.train.run import _interruptible

    with Signals() as signals:
        signals.is_deferred = True
        rows = _interruptible(batches(Hung(), Rising(8, 4, 0), workers=1), signals)
        next(rows)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(DataError, match="stopped while waiting"):
            next(rows)
        assert signals.stop == signal.SIGTERM


def test_a_closed_terminal_ends_a_run_like_sigterm_unless_it_is_ignored() -> None:
    with Signals(), pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGHUP)
    assert stopped.value.code == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.stop == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_memory_that_is_exhausted_while_building_is_exit_code_3(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 4 TB")

    monkeypatch.setattr("maskgen.train.program.build", build)
    code, _, err = command("train", "image/digits-maskgit", *TINY, "--output", tmp_path)
    assert (code, "memory was exhausted" in err) == (3, True)
    assert read(tmp_path)["state"] == "failed"
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert OutOfMemory.code == 3


def test_retention_hides_a_checkpoint_before_it_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskgen.recipes.budget import TrainSettings

    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, TrainSettings(keep_checkpoints=1))
    assert not [path for path in tmp_path.glob("checkpoint-*") if not (path / "model.safetensors").exists()]
    clean(tmp_path)
    prune(tmp_path, TrainSettings(keep_checkpoints=1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_retention_unlinks_a_checkpoint_that_is_a_link(tmp_path: Path) -> None:
    from maskgen.recipes.budget import TrainSettings

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    (run_directory / "checkpoint-1").symlink_to(elsewhere)
    (run_directory / "checkpoint-2").mkdir()
    prune(run_directory, TrainSettings(keep_checkpoints=1))
    assert [path.name for path in run_directory.iterdir()] == ["checkpoint-2"]
    assert (elsewhere / "kept").exists()


def test_damaged_lines_of_the_metrics_are_dropped_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    good = b'{"step": 1}\n'
    file.write_bytes(
        good + b'\xff\x00 {"step"\n' + b"3\n[1]\nnull\n" + b'{"step": null}\n' + b'{"step": 9}\n' + b'{"st'
    )
    drop_after(file, 5)
    assert file.read_bytes() == good


@pytest.mark.parametrize(
    "changes", [{"scores": {"loss": None}}, {"shares": {"saving": None}}, {"scores": {"loss": "x"}}]
)
def test_a_status_with_nulls_is_listed(tmp_path: Path, command: Command, changes: dict[str, object]) -> None:
    Status(tmp_path, "r", 9).write("finished", 9, {"loss": 1.0}, shares={"saving": 0.1})
    file = tmp_path / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    code, out, _ = command("runs", tmp_path)
    assert (code, "finished" in out) == (0, True)


def test_a_status_draft_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".status.json").symlink_to(victim)
    Status(tmp_path, "r", 9).write("running", 1)
    assert victim.read_text() == "mine"
    assert read(tmp_path)["step"] == 1


def test_the_list_of_runs_says_what_a_resume_would_do(tmp_path: Path, command: Command) -> None:
    for name, step in (("a", 4), ("b", 9)):
        (tmp_path / name / f"checkpoint-{step}").mkdir(parents=True)
        Status(tmp_path / name, "r", 9).write("stopped", step)
    Status(tmp_path, "r", 9).write("failed", 1, error="bad \x1b[31m news")
    out = command("runs", tmp_path)[1]
    assert "from checkpoint-4, 5 steps left" in out
    assert "nothing left" in out
    assert "no checkpoint" in out
    assert "\x1b" not in out
