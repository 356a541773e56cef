"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Failed(Exception):
    """A process that failed; the message is the last line of its output."""


def maskgen(*arguments: str | Path, threads: int | None = None) -> str:
    """Run `maskgen ARGUMENTS`; returns its output. `threads` for computing, all cores if None.

    Raises:
        Failed: an exit code other than 0.
    """
    environment = os.environ | ({} if threads is None else dict.fromkeys(THREADS, str(threads)))
    command = [sys.executable, "-m", "maskgen.cli.commands", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
        raise Failed(f"maskgen {arguments[0]} ended with code {done.returncode}: {said[-1] if said else 'no message'}")
    return done.stdout
