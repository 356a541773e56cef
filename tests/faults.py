"""Faults put into real training runs, each a process of its own, and what comes of them. `make faults` runs all.

A run is a fork of this process, so that it starts in a second: it has its own memory, signals and exit code. Every
fault ends with the law that nothing is lost beyond the last checkpoint: the run goes on from there and its last weights
are those of the run that had no fault, to the last bit.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskgen.checkpoints.checkpoint import checkpoints_in, read_checkpoint
from maskgen.cli.commands import main as command_line

STEPS, EVERY = 12, 3
RECIPE = [
    *("digits-maskgit", "model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=8", "train.warmup=2"),
    *(f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.log_every=1", "train.ema=0.9"),
    *("train.preview_every=0", "train.validation_rows=8", "train.tensorboard=false", "train.keep_checkpoints=3"),
]
DONE, WRONG, MEMORY, DIVERGED, FULL, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 5, 130, 143
Inject = Callable[[], None]


class Child:
    """A command of `maskgen` in a forked process; `before` runs in it first."""

    def __init__(self, log: Path, *arguments: str | Path, before: Inject | None = None) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._live(list(map(str, arguments)), before))

    def _live(self, arguments: list[str], before: Inject | None) -> int:
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            if before is not None:
                before()
            sys.argv = ["maskgen", *arguments]
            command_line()
        except SystemExit as stop:
            return int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            return 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def wait(self) -> int:
        """The exit code; minus the signal that killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


class Lab:
    """A directory for the runs of one fault, and the run without any."""

    def __init__(self, home: Path, whole: Path) -> None:
        self.home, self.whole, self.run = home, whole, home / "run"
        self.n_children = 0

    def start(self, *more: str, resume: bool = False, before: Inject | None = None) -> Child:
        """Train; with `resume` from the last checkpoint if there is one."""
        self.n_children += 1
        flags = ["--resume"] if resume and checkpoints_in(self.run) else []
        log = self.home / f"log-{self.n_children}"
        return Child(log, "train", *RECIPE, *more, "--output", self.run, *flags, "--device", "cpu", before=before)

    def until(self, child: Child, step: int) -> None:
        """Wait until a run has logged a step."""
        deadline = time.monotonic() + 240
        while self.logged() < step:
            if time.monotonic() > deadline or os.waitpid(child.pid, os.WNOHANG) != (0, 0):
                raise AssertionError(f"the run never came to step {step}: {child.said[-500:]}")
            time.sleep(0.002)

    def logged(self) -> int:
        file = self.run / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return sum("train/loss" in line for line in lines)

    def trained(self, step: int, **options: Any) -> Path:
        """The run up to a step; its last checkpoint."""
        child = self.start(before=stop_after(step), **options)
        assert child.wait() == TERMINATED, child.said
        return checkpoints_in(self.run)[-1]

    def ends_like_the_whole(self) -> str:
        """Resume, and hold the last weights and losses against the run without fault."""
        child = self.start(resume=True)
        assert child.wait() == DONE, child.said
        assert weights(self.run) == weights(self.whole), "the weights are others"
        assert losses(self.run) == losses(self.whole), "the losses are others"
        return "resumes, equal to the bit"


def weights(run: Path) -> list[Any]:
    files = read_checkpoint(run / f"checkpoint-{STEPS}").info["files"]
    return [files["model.safetensors"], files["training.safetensors"]]


def losses(run: Path) -> dict[int, float]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in found if "train/loss" in line}


def whole_run(home: Path) -> Path:
    """The run without fault."""
    lab = Lab(home, home)
    home.mkdir(parents=True, exist_ok=True)
    child = lab.start()
    assert child.wait() == DONE, child.said
    return lab.run


def patch(module: str, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function in this process: `make` is given the old one."""
    home = sys.modules[module]
    setattr(home, name, make(getattr(home, name)))


def at_call(n: int, act: Inject) -> Callable[[Any], Any]:
    """A function that acts at its n-th call, before it does what it did."""
    count = 0

    def make(old: Any) -> Any:
        def new(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                act()
            return old(*arguments, **options)

        return new

    return make


def to_self(number: int) -> Inject:
    return lambda: os.kill(os.getpid(), number)


def stop_after(step: int) -> Inject:
    """A SIGTERM in the middle of a step."""
    return lambda: patch("maskgen.train.loop", "stretch_at", at_call(step, to_self(signal.SIGTERM)))


def _nan_loss(steps: range) -> Inject:
    def make(old: Any) -> Any:
        count = 0

        def new(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += arguments[0].requires_grad  # not the calls of validation, and of counting operations
            value = old(*arguments, **options)
            return value * float("nan") if count in steps else value

        return new

    import torch.nn.functional as functional

    return lambda: setattr(functional, "cross_entropy", make(functional.cross_entropy))


def kills(lab: Lab, n: int = 20, seed: int = 0) -> str:
    """kill -9 at random moments, one after the other, of one run"""
    chance, killed = random.Random(seed), 0
    while killed < n:
        child = lab.start(resume=True)
        newest = int(checkpoints_in(lab.run)[-1].name.split("-")[1]) if checkpoints_in(lab.run) else 0
        if newest < STEPS - EVERY:  # from starting up to some steps on; a save takes as long as a step here
            time.sleep(chance.random() * 0.5)
            if chance.random() < 0.7:
                lab.until(child, min(newest + chance.randrange(1, EVERY + 2), STEPS - 1))
            time.sleep(chance.random() * 0.03)
        child.send(signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, DONE), child.said
        killed += 1
    return f"killed {killed} times; {lab.ends_like_the_whole()}"


def _kill_in_save(name: str, n: int, moment: str) -> Callable[[Lab], str]:
    def fault(lab: Lab) -> str:
        child = lab.start(
            before=lambda: patch("maskgen.checkpoints.checkpoint", name, at_call(n, to_self(signal.SIGKILL)))
        )
        assert child.wait() == -signal.SIGKILL, child.said
        before = len(checkpoints_in(lab.run))
        outcome = lab.ends_like_the_whole()
        assert not list(lab.run.glob(".checkpoint-*")), "half-written checkpoints were left"
        return f"{before} whole before; {outcome}"

    fault.__doc__ = f"kill -9 while the second checkpoint is saved, {moment}"
    return fault


def _damaged(name: str, how: str) -> Callable[[Lab], str]:
    def fault(lab: Lab) -> str:
        file = lab.trained(8) / name
        _damage(file, how)
        child = lab.start(resume=True)
        assert child.wait() == DONE, child.said
        assert name in child.said, "the file is not named"
        assert "resuming from checkpoint-6" in child.said, child.said
        assert weights(lab.run) == weights(lab.whole)
        return "named, resumes from the previous one, equal to the bit"

    fault.__doc__ = f"{name} of the newest checkpoint {how}"
    return fault


def _damage(file: Path, how: str) -> None:
    raw = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        middle = len(raw) // 2
        file.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])


def all_damaged(lab: Lab) -> str:
    """every checkpoint damaged"""
    lab.trained(8)
    for path in checkpoints_in(lab.run):
        _damage(path / "training.safetensors", "truncated")
    child = lab.start(resume=True)
    assert child.wait() == WRONG, child.said
    assert child.said.count("training.safetensors is truncated") == len(checkpoints_in(lab.run))
    return "refused, every file named, exit code 2"


def without_training_state(lab: Lab) -> str:
    """a checkpoint exported for use put in place of the newest"""
    newest = lab.trained(8)
    child = Child(lab.home / "export", "export", newest, lab.home / "exported")
    assert child.wait() == DONE, child.said
    shutil.rmtree(newest)
    (lab.home / "exported").rename(newest)
    child = lab.start(resume=True)
    assert child.wait() == DONE, child.said
    assert "has no training.safetensors" in child.said
    assert weights(lab.run) == weights(lab.whole)
    return "named, resumes from the previous one, equal to the bit"


def terminated(lab: Lab) -> str:
    """SIGTERM in the middle of a step"""
    path = lab.trained(5)
    assert path.name == "checkpoint-5"
    return f"step finished, saved, exit code {TERMINATED}; {lab.ends_like_the_whole()}"


def interrupted(lab: Lab) -> str:
    """SIGINT in the middle of a step"""
    child = lab.start(before=lambda: patch("maskgen.train.loop", "stretch_at", at_call(4, to_self(signal.SIGINT))))
    assert child.wait() == INTERRUPTED, child.said
    assert checkpoints_in(lab.run)[-1].name == "checkpoint-4"
    assert "Traceback" not in child.said
    return f"step finished, saved, exit code {INTERRUPTED}; {lab.ends_like_the_whole()}"


def interrupted_twice(lab: Lab) -> str:
    """SIGINT twice in one step"""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)

    child = lab.start(before=lambda: patch("maskgen.train.loop", "stretch_at", at_call(5, twice)))
    assert child.wait() == INTERRUPTED, child.said
    assert checkpoints_in(lab.run)[-1].name == "checkpoint-3"
    return f"ends at once, nothing half-written; {lab.ends_like_the_whole()}"


def terminated_in_validation(lab: Lab) -> str:
    """SIGTERM while validating"""
    child = lab.start(before=lambda: patch("maskgen.train.validation", "validate", at_call(2, to_self(signal.SIGTERM))))
    assert child.wait() == TERMINATED, child.said
    assert checkpoints_in(lab.run)[-1].name == "checkpoint-6"
    return f"validation cut short, saved, exit code {TERMINATED}; {lab.ends_like_the_whole()}"


def terminated_in_preview(lab: Lab) -> str:
    """SIGTERM while drawing a preview"""
    before = at_call(1, to_self(signal.SIGTERM))
    child = lab.start(
        "train.preview_every=3", before=lambda: patch("maskgen.train.validation", "preview_samples", before)
    )
    assert child.wait() == TERMINATED, child.said
    assert checkpoints_in(lab.run)[-1].name == "checkpoint-3"
    return f"preview cut short, checkpoint there, exit code {TERMINATED}; {lab.ends_like_the_whole()}"


def saved_on_demand(lab: Lab) -> str:
    """SIGUSR1 in the middle of a step"""
    child = lab.start(
        "train.keep_checkpoints=9",
        before=lambda: patch("maskgen.train.loop", "stretch_at", at_call(5, to_self(signal.SIGUSR1))),
    )
    assert child.wait() == DONE, child.said
    assert (lab.run / "checkpoint-5").is_dir()
    assert weights(lab.run) == weights(lab.whole)
    assert losses(lab.run) == losses(lab.whole)
    return "checkpoint of that step, resumes, equal to the bit"


def one_nan(lab: Lab) -> str:
    """NaN loss in one step"""
    child = lab.start(before=_nan_loss(range(5, 6)))
    assert child.wait() == DONE, child.said
    assert read_checkpoint(lab.run).info["skipped"] == 1
    return "step skipped and counted, run continues"


def many_nans(lab: Lab) -> str:
    """NaN loss from a step on"""
    child = lab.start("train.skip_limit=4", before=_nan_loss(range(5, 99)))
    assert child.wait() == DIVERGED, child.said
    assert checkpoints_in(lab.run)[-1].name == "checkpoint-3", "a checkpoint of a diverged run was kept"
    assert list(lab.run.glob("bad-batch-*.safetensors"))
    return f"ends with exit code {DIVERGED}, batch kept; {lab.ends_like_the_whole()}"


def out_of_memory(lab: Lab) -> str:
    """a step that does not fit into memory (a limit on the address space)"""

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))

    before = at_call(1, limit)
    child = lab.start("train.batch_size=40000", before=lambda: patch("maskgen.train.loop", "stretch_at", before))
    assert child.wait() == MEMORY, child.said
    assert "raise train.accumulate" in child.said
    assert not checkpoints_in(lab.run)
    return f"says which settings to change, exit code {MEMORY}"


def full_disk(lab: Lab) -> str:
    """a disk that is full when the second checkpoint is written (a small tmpfs)"""
    lab.run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(lab.run)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return "not tried: no right to mount"
    try:
        child = lab.start()
        assert child.wait() == FULL, child.said
        whole = checkpoints_in(lab.run)
        assert whole, child.said
        for path in whole:
            read_checkpoint(path).verify()
        assert "make room" in child.said
        assert not list(lab.run.glob(".checkpoint-*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(lab.run)], check=True)
        return f"old checkpoints whole, exit code {FULL}; with more room: {lab.ends_like_the_whole()}"
    finally:
        subprocess.run(["umount", str(lab.run)], check=False)


def not_writable(lab: Lab) -> str:
    """an output that cannot be written"""
    (lab.home / "file").touch()
    child = Child(lab.home / "log", "train", *RECIPE, "--output", lab.home / "file" / "run")
    assert child.wait() == WRONG, child.said
    assert "cannot write" in child.said
    return "refused before training, exit code 2"


def clock_set_back(lab: Lab) -> str:
    """the clock set back by ten years between two parts of a run"""
    lab.trained(5)
    then = time.time() - 3e8

    def back() -> None:
        time.time = lambda: then
        for path in lab.run.rglob("*"):
            os.utime(path, (then + 3e8 + 1e6, then + 3e8 + 1e6))

    child = lab.start(resume=True, before=back)
    assert child.wait() == DONE, child.said
    assert weights(lab.run) == weights(lab.whole)
    return "resumes, equal to the bit"


def two_at_once(lab: Lab) -> str:
    """two runs in one directory"""
    first = lab.start()
    lab.until(first, 1)
    second = lab.start(resume=True)
    code = second.wait()
    assert code == WRONG, second.said
    assert f"process {first.pid} on" in second.said or "holds checkpoint" in second.said, second.said
    assert first.wait() == DONE, first.said
    assert weights(lab.run) == weights(lab.whole)
    return "second refused with process and host, first undisturbed"


def lock_of_the_dead(lab: Lab) -> str:
    """the lock file of a killed process"""
    child = lab.start()
    lab.until(child, 4)
    child.send(signal.SIGKILL)
    child.wait()
    assert str(child.pid) in (lab.run / ".lock").read_text()
    return f"does not count; {lab.ends_like_the_whole()}"


def another_recipe(lab: Lab) -> str:
    """the recipe changed between two parts of a run"""
    lab.trained(5)
    child = lab.start("model.width=32", resume=True)
    assert child.wait() == WRONG, child.said
    assert "was trained with another model" in child.said
    return f"refused, exit code 2; {lab.ends_like_the_whole()}"


def leftovers(lab: Lab) -> str:
    """half-written checkpoints of a killed process lying about"""
    lab.trained(5)
    for name in (".checkpoint-6.tmp-1", ".checkpoint-6.old-1"):
        (lab.run / name).mkdir()
        (lab.run / name / "model.safetensors").write_bytes(b"half")
    outcome = lab.ends_like_the_whole()
    assert not list(lab.run.glob(".checkpoint-*"))
    return f"removed; {outcome}"


def cut_metrics(lab: Lab) -> str:
    """a line of metrics.jsonl cut short, status.json garbled"""
    lab.trained(5)
    with (lab.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    (lab.run / "status.json").write_text("{")
    return f"rewritten; {lab.ends_like_the_whole()}"


def damaged_cache(lab: Lab) -> str:
    """the token cache damaged between two parts of a run"""
    lab.trained(5)
    for file in Path(os.environ["MASKGEN_CACHE"]).glob("tokens-*.bin"):
        _damage(file, "flipped")
    return f"made again; {lab.ends_like_the_whole()}"


def dead_worker(lab: Lab) -> str:
    """a data worker killed"""
    from maskgen.data.cache import TokenData

    def deadly() -> None:
        old = TokenData.__getitems__

        def new(self: Any, indices: Any) -> Any:
            import torch.utils.data

            if torch.utils.data.get_worker_info() is not None and 17 in list(indices):
                os.kill(os.getpid(), signal.SIGKILL)
            return old(self, indices)

        TokenData.__getitems__ = new  # type: ignore[method-assign]

    child = lab.start("train.workers=1", "train.steps=400", "train.checkpoint_every=400", before=deadly)
    assert child.wait() == WRONG, child.said[-2000:]
    assert "a data worker died reading row 17" in child.said, child.said[-2000:]
    return "the sample is named, exit code 2"


def _group(child: Child, number: int) -> None:
    """A signal to a process and those it has started, as a terminal or a batch system sends it."""
    others = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    for pid in (*map(int, others), child.pid):
        os.kill(pid, number)


def group_terminated(lab: Lab) -> str:
    """SIGTERM to a run and its data workers at once"""
    child = lab.start("train.workers=2", "train.steps=4000", "train.lr_schedule=constant")
    lab.until(child, 4)
    _group(child, signal.SIGTERM)
    assert child.wait() == TERMINATED, child.said
    read_checkpoint(lab.run).verify()
    return f"saved, exit code {TERMINATED}"


def worker_dead_at_the_end(lab: Lab) -> str:
    """a data worker killed, and the run stopped before it notices"""
    lab.run.mkdir()

    def both() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        workers = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for pid in map(int, workers):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)

    # In the fifth step, before its rows are fetched.
    child = lab.start("train.workers=1", before=lambda: patch("maskgen.train.loop", "stretch_at", at_call(5, both)))
    assert child.wait() == TERMINATED, child.said[-2000:]
    assert checkpoints_in(lab.run)[-1].name in ("checkpoint-4", "checkpoint-5"), child.said[-2000:]
    return f"saved, exit code {TERMINATED}; {lab.ends_like_the_whole()}"


def unreadable_picture(lab: Lab) -> str:
    """a file that is no picture, read by a data worker"""
    from PIL import Image

    folder = lab.home / "pictures"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for index in range(8):
            Image.new("L", (8, 8), index).save(folder / part / f"{index}.png")
    (folder / "train" / "broken.png").write_bytes(b"no picture")
    recipe = lab.home / "tokenizer.yaml"
    recipe.write_text(
        f"{{data: {{type: folder, path: {folder}, size: 8, channels: 1}}, objective: reconstruction, "
        "tokenizer: {type: fsq, levels: [3], width: 8, fine_width: 4, depth: 1}, train: {steps: 9, batch_size: 4, "
        "workers: 1, validation_rows: 0, preview_every: 0, tensorboard: false}}"
    )
    child = Child(lab.home / "log", "train", recipe, "--output", lab.run)
    assert child.wait() == WRONG, child.said
    assert "broken.png" in child.said
    assert "Traceback" not in child.said
    return "the file is named, exit code 2"


FAULTS: dict[str, Callable[[Lab], str]] = {
    "kills": kills,
    **{f"kill-in-save-{i}": _kill_in_save(*where) for i, where in enumerate((
        ("save_file", 3, "before its weights"), ("save_file", 4, "before its training state"),
        ("stamps", 2, "before its hashes"), ("flush", 3, "before it is flushed"),
        ("flush", 4, "after it is renamed")))},
    **{f"{name}-{how}": _damaged(name, how) for name, how in (
        ("model.safetensors", "truncated"), ("training.safetensors", "flipped"), ("training.safetensors", "missing"),
        ("model.safetensors", "empty"), ("checkpoint.json", "missing"), ("checkpoint.json", "flipped"),
        ("recipe.yaml", "flipped"))},
    **{function.__name__.replace("_", "-"): function for function in (
        all_damaged, without_training_state, terminated, interrupted, interrupted_twice, terminated_in_validation,
        terminated_in_preview, saved_on_demand, one_nan, many_nans, out_of_memory, full_disk, not_writable,
        clock_set_back, two_at_once, lock_of_the_dead, another_recipe, leftovers, cut_metrics, damaged_cache,
        dead_worker, group_terminated, worker_dead_at_the_end, unreadable_picture)},
}  # fmt: skip

QUICK = (
    "terminated",
    "interrupted-twice",
    "training.safetensors-flipped",
    "kill-in-save-3",
    "two-at-once",
    "many-nans",
)
"""Those the test suite runs every time."""


def main() -> int:
    """Run all faults, or those named; docs/design/faults.md is written when all were run."""
    import tempfile

    names = sys.argv[1:] or list(FAULTS)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["MASKGEN_CACHE"] = str(home / "cache")
        import maskgen.train.program  # noqa: F401 - every fork has it

        whole, rows = whole_run(home / "whole"), []
        for name in names:
            lab = Lab(home / name, whole)
            lab.home.mkdir()
            began = time.monotonic()
            try:
                outcome = FAULTS[name](lab)
            except AssertionError as error:
                outcome = f"**FAILED**: {str(error).strip().splitlines()[-1] if str(error) else 'see the source'}"
            rows.append((name, str(FAULTS[name].__doc__), outcome, f"{time.monotonic() - began:.0f} s"))
            print(*rows[-1], sep=" | ", flush=True)
    if names == list(FAULTS):
        Path("docs/design/faults.md").write_text(page(rows))
    return int(any("FAILED" in outcome for _, _, outcome, _ in rows))


def page(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """The page of the faults: name, what is done, outcome and duration of each."""
    lines = [
        "# Faults and recovery",
        "",
        "After this page you know which faults a training survives, and how it ends where it does not.",
        "",
        "```bash",
        "make faults",
        "```",
        f"The command puts {len(rows)} faults into real runs of {STEPS} steps, each a process of its own, and writes",
        "this page; the quick ones are in the test suite (`tests/train/test_faults.py`). *Equal to the bit*: weights",
        "and losses at the end are those of a run without the fault.",
        "",
    ]
    for name, done, outcome, took in rows:
        text = f"`{name}` ({took}): {done}. **{outcome[0].upper()}{outcome[1:]}.**"
        lines += textwrap.wrap(text, 120, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
