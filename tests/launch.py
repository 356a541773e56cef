"""Processes of a program, started in a tenth of a second: forks of one that has imported everything.

Alone, or several that work together (gloo) as torchrun starts them. Tests of the launchers themselves start torchrun
and `python -m maskgen`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from maskgen.train.subprocesses import THREADS, Failed

PRELOAD = (
    *("maskgen.train.program", "maskgen.train.run", "maskgen.sample.bench", "sklearn.datasets"),
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor"),
)
"""What a run imports in the end: a fork of a process that has it starts at once."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.launch", *PRELOAD])


def _live(module: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def start(module: str, arguments: Sequence[str | Path], log: Path, **environment: str) -> BaseProcess:
    """Start `python -m module` with more environment variables; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    whole = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    child = _FORKS.Process(target=_live, args=(module, [str(word) for word in arguments], whole, str(log)))
    child.start()
    return child


def once(
    module: str, arguments: Sequence[str | Path], limit: float = 240, **environment: str
) -> tuple[int | None, str]:
    """Run `python -m module` to its end; its exit code, None after `limit` seconds, and all that it printed."""
    with TemporaryDirectory() as home:
        child = start(module, arguments, Path(home) / "log", **environment)
        child.join(limit)
        code = child.exitcode
        child.kill()
        child.join()
        return code, (Path(home) / "log").read_text(errors="replace")


def maskgen(*arguments: str | Path, threads: int | None = None) -> str:
    """As `maskgen.train.subprocesses.maskgen`, which starts Python anew."""
    code, said = once("maskgen.cli.commands", arguments, **dict.fromkeys(THREADS, str(threads or 1)))
    if code != 0:
        last = [line for line in said.replace("\r", "\n").splitlines() if line.strip()][-1:]
        raise Failed(f"maskgen {arguments[0]} ended with code {code}: {''.join(last) or 'no message'}")
    return said


def processes(n: int, module: str, arguments: Sequence[str | Path], home: Path, limit: float = 240) -> list[str]:
    """Run `python -m module` in n processes that work together; what each of them printed.

    Raises:
        AssertionError: one failed or took longer than `limit` seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [home / f"log-{port}-{rank}" for rank in range(n)]
    started = [
        start(module, arguments, log, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank, log in enumerate(logs)
    ]
    try:
        deadline = time.monotonic() + limit
        while any(child.exitcode is None for child in started) and time.monotonic() < deadline:
            if any(child.exitcode for child in started):
                break
            started[0].join(0.05)
            time.sleep(0.01)
        assert [child.exitcode for child in started] == [0] * n, "\n".join(log.read_text()[-3000:] for log in logs)
    finally:
        for child in started:
            child.kill()
            child.join()
    return [log.read_text() for log in logs]
