"""status.json of a run directory, which `maskgen runs` reads."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal

NAME = "status.json"
KEYS: Mapping[str, type | UnionType] = {
    "state": str, "recipe": str, "step": int, "steps": int, "scores": Mapping | None, "error": str, "time": int | float,
}  # fmt: skip
State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Status:
    """Writes the file; only the main process does."""

    directory: Path
    recipe: str
    steps: int
    scores: Mapping[str, float] | None = None
    shares: Mapping[str, float] | None = None
    is_main: bool = True

    def write(
        self,
        state: State,
        step: int | None = None,
        scores: Mapping[str, float] | None = None,
        error: str = "",
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Where the run is; the last step, scores and shares of time stay if none are given."""
        if not self.is_main:
            return
        before = read(self.directory)
        self.scores = scores or self.scores or before.get("scores")
        self.shares = shares or self.shares or before.get("shares")
        tree = {
            "state": state, "recipe": self.recipe, "step": before.get("step", 0) if step is None else step,
            "steps": self.steps, "scores": self.scores, "shares": self.shares, "error": error, "pid": os.getpid(),
            "host": socket.gethostname(), "time": time.time(),
        }  # fmt: skip
        draft = self.directory / f".{NAME}"  # not flushed to the disk: it is written with every line of the log
        draft.unlink(missing_ok=True)  # a link of this name is not followed
        draft.write_text(json.dumps(tree, indent=1), encoding="utf-8")
        draft.replace(self.directory / NAME)


def read(directory: Path) -> dict[str, Any]:
    """The status of a run directory; empty if there is none, it is damaged, or another program's."""
    try:
        tree = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(tree, dict) and all(isinstance(tree.get(key), kind) for key, kind in KEYS.items())
    if not is_ours or not math.isfinite(tree["time"]):
        return {}
    return {**tree, **{key: _numbers(tree.get(key)) for key in ("scores", "shares")}}


def _numbers(tree: object) -> dict[str, float] | None:
    """The finite numbers of a mapping, None for anything else."""
    if not isinstance(tree, Mapping):
        return None
    return {
        str(key): float(value) for key, value in tree.items() if isinstance(value, int | float) and math.isfinite(value)
    }
