"""CPU seconds of short commands in two checkouts, measured in turn: what starting up costs.

    python benchmarks/startup.py BEFORE AFTER [--command NAME ...] [--repeats N] [--output FILE.json]

BEFORE and AFTER are roots of checkouts. Each command runs in a process of its own with one thread; user and system
seconds of the fastest of N runs are compared. Inputs are made from a seed; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from equality import ENVIRONMENT, make_site  # noqa: E402

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("--help",),
    "recipes": ("recipes",),
    "zoo": ("zoo",),
    "samplers": ("samplers",),
    "sample": ("sample", "fashion-maskgit", "--num", "8"),
    "sample-text": ("sample", "kjv-md4", "--num", "1", "--length", "32"),
    "evaluate": ("evaluate", "kjv-md4", "--metric", "diversity", "--num", "2", "--length", "32"),
    "fid": ("fid", "a.npz", "b.npz", "--protocol", "fashion-classifier"),
    "train": ("train", "digits-maskgit", "train.steps=1", "--output", "run"),
}
PROGRAM = "import sys; from maskgen.cli import main; main()"


def make_images(home: Path) -> None:
    """Two sets of 64 grey images."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(home / f"{name}.npz", images=random.integers(0, 256, (64, 28, 28, 1), dtype=np.uint8))


def seconds(checkout: Path, command: Sequence[str]) -> float:
    """User and system seconds of a command and its children in a fresh folder.

    Raises:
        SystemExit: the command fails.
    """
    with TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        make_site(checkout, home / "site")
        (home / "work").mkdir()
        make_images(home / "work")
        paths = [str(home / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "MASKGEN_CACHE": str(home / "cache")}
        environment = {**os.environ, **ENVIRONMENT, **own, "PYTHONDONTWRITEBYTECODE": ""}
        run = [sys.executable, "-c", PROGRAM, *command]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(run, env=environment, cwd=home / "work", capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{checkout}: maskgen {' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(before: Path, after: Path, command: Sequence[str], repeats: int) -> tuple[float, float]:
    """The fewest CPU seconds of a command in both checkouts, run in turn; a first run of each warms the caches."""
    runs = [(seconds(before, command), seconds(after, command)) for _ in range(repeats + 1)][1:]
    return min(one for one, _ in runs), min(other for _, other in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--command", nargs="+", default=list(COMMANDS), choices=COMMANDS, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    found = {}
    print(f"{'command':12} {'before':>8} {'after':>8} {'ratio':>6}   CPU seconds")
    for name in options.command:
        one, other = compare(options.before, options.after, COMMANDS[name], options.repeats)
        found[name] = {"before": one, "after": other, "ratio": other / one}
        print(f"{name:12} {one:8.2f} {other:8.2f} {other / one:6.2f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
