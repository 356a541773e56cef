"""What a run has spent: wall-clock and processor seconds, in all and in the steps of each phase, resumes included."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Clock:
    """Counts on from what a checkpoint's info says was spent. Processor seconds compare runs that shared a machine."""

    def __init__(self, info: Mapping[str, Any] | None = None) -> None:
        info = info or {}
        self._origin = time.perf_counter() - float(info.get("seconds", 0))
        self._cpu_origin = time.process_time() - float(info.get("cpu_seconds", 0))
        self._phases: dict[int, dict[str, float]] = {int(one["phase"]): dict(one) for one in info.get("phases", ())}
        self._speed = (time.perf_counter(), 0)
        self.resume()

    def resume(self) -> None:
        """What went by since the last step (a checkpoint, a preview) belongs to no step."""
        self._last = (time.perf_counter(), time.process_time())

    def step(self, phase: int, n_samples: int) -> None:
        """A step of a phase has ended."""
        before, self._last = self._last, (time.perf_counter(), time.process_time())
        spent = self._phases.setdefault(
            phase, {"phase": phase, "steps": 0, "samples": 0, "seconds": 0.0, "cpu_seconds": 0.0}
        )
        amounts = (1, n_samples, self._last[0] - before[0], self._last[1] - before[1])
        for key, amount in zip(("steps", "samples", "seconds", "cpu_seconds"), amounts, strict=True):
            spent[key] += amount
        self._speed = (self._speed[0], self._speed[1] + n_samples)

    def samples_per_second(self) -> float:
        """Since it was last asked."""
        since, n_samples = self._speed
        self._speed = (time.perf_counter(), 0)
        return n_samples / max(self._speed[0] - since, 1e-9)

    def so_far(self) -> dict[str, float]:
        """Seconds since the run began, pauses between its parts left out."""
        return {
            "seconds": round(time.perf_counter() - self._origin, 1),
            "cpu_seconds": round(time.process_time() - self._cpu_origin, 1),
        }

    def phases(self) -> list[dict[str, float]]:
        """The phases so far: `phase`, `steps`, `samples`, and seconds and speed of their steps alone."""
        return [
            {**spent, "samples_per_second": spent["samples"] / max(spent["seconds"], 1e-9)}
            for _, spent in sorted(self._phases.items())
        ]
