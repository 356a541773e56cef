"""`maskgen runs`: the runs below a directory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgen.checkpoints.checkpoint import checkpoints_in, newest_in
from maskgen.core import lock
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.terminal import printable

from . import status
from .clock import OVERHEAD

COLUMNS = ("run", "recipe", "state", "step", "score", "overhead", "updated", "resume", "error")


def run(directory: str) -> str:
    """A table of the runs in a directory and below it; what `--resume` would do is a column.

    Raises:
        UserError: no such directory.
    """
    root = local_path(directory)
    if not root.is_dir():
        raise UserError(f"no directory {directory}; give one that holds runs (`maskgen train --output DIR` makes them)")
    homes = sorted(_with_status(root) | _without_status(root))
    if not homes:
        return f"no runs in {directory}; `maskgen train RECIPE --output {directory}/NAME` starts one"
    rows = [COLUMNS, *(_row(home, root) for home in homes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return printable("\n".join(line.rstrip() for line in lines), keep="\n")


def _with_status(root: Path) -> set[Path]:
    """Directories with a status file of maskgen, or one that this user cannot read."""
    files = root.rglob(status.NAME)
    return {file.parent for file in files if not os.access(file, os.R_OK) or status.read(file.parent)}


def _without_status(root: Path) -> set[Path]:
    """Runs of versions without a status file."""
    return {path.parent for path in root.rglob("checkpoint-*") if path.is_dir() and checkpoints_in(path.parent)}


def _row(home: Path, root: Path) -> tuple[str, ...]:
    found = status.read(home)
    name = home.relative_to(root).as_posix()
    if not found:
        newest = checkpoints_in(home)[-1].name.split("-")[1] if checkpoints_in(home) else "?"
        return (name, "?", "?", newest, "", "", "", _resume(home, None), "")
    state = found["state"]
    try:
        if state == "running" and not lock.is_held(home):
            state = "killed"
    except PermissionError:  # another user's
        state = "unknown"
    step = f"{found['step']:,} / {found['steps']:,}"
    error = str(found["error"]).splitlines()[0][:100] if found["error"] else ""
    ago, resume = _ago(found["time"]), _resume(home, None if state == "running" else found["steps"])
    return (name, found["recipe"], state, step, _score(found), _overhead(found), ago, resume, error)


def _resume(home: Path, steps: int | None) -> str:
    """What `--resume` would do: from which checkpoint it goes on, for how many steps. Nothing for a running one."""
    newest = newest_in(home)
    if steps is None:
        return ""
    if newest is None:
        return "no checkpoint"
    left = steps - int(newest.name.split("-")[1])
    return f"from {newest.name}, {left:,} steps left" if left > 0 else "nothing left"


def _score(found: dict[str, Any]) -> str:
    scores = found["scores"] or {}
    return f"loss {scores['loss']:.4g}" if "loss" in scores else ""


def _overhead(found: Mapping[str, object]) -> str:
    """Share of the time that logging and saving took."""
    shares = found.get("shares")
    if not isinstance(shares, dict) or not shares:
        return ""
    return f"{sum(shares.get(work, 0.0) for work in OVERHEAD):.1%}"


def _ago(moment: float) -> str:
    seconds = time.time() - moment
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
