"""status.json of a run directory: what `maskgen runs` tells of it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NAME = "status.json"
KEYS: Mapping[str, Any] = {
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
        draft.write_text(json.dumps(tree, indent=1), encoding="utf-8")
        draft.replace(self.directory / NAME)


def read(directory: Path) -> dict[str, Any]:
    """What a run directory says of itself; empty if nothing that can be read, or the file is another program's."""
    try:
        tree = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(tree, dict) and all(isinstance(tree.get(key), kind) for key, kind in KEYS.items())
    return tree if is_ours else {}
