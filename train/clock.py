"""Wall-clock and CPU seconds of a run, in total and per phase, resumes included."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

Work = Literal["steps", "data", "logging", "saving", "validation", "previews", "other"]
OVERHEAD: tuple[Work, ...] = ("logging", "saving")
"""Work outside the steps: `maskgen runs` shows its share."""

Item = TypeVar("Item")


class Clock:
    """Assigns each moment to one kind of work: the innermost that is `on`, `other` where none is.

    Wall-clock seconds count from its construction. CPU seconds compare runs that shared a machine; they count from
    `count_on`, since the cost of a start depends on the state of the cache.
    """

    def __init__(self, info: Mapping[str, object] | None = None) -> None:
        self._work: Work = "other"
        self._spent: dict[str, float] = {}
        self._phases: dict[int, dict[str, float]] = {}
        self._stepping = (0.0, 0.0)
        self._window = (0.0, 0, 0.0)
        self._last = (time.perf_counter(), time.process_time())
        self.count_on(info or {})

    def count_on(self, info: Mapping[str, Any]) -> None:
        """Continue from the times in the info of a checkpoint, or in another `tree`."""
        self._cpu_origin = time.process_time() - float(info.get("cpu_seconds", 0))
        self._phases = {int(one["phase"]): dict(one) for one in info.get("phases", ())}
        before = {str(work): float(seconds) for work, seconds in info.get("spent", {}).items()}
        unassigned = max(float(info.get("seconds", 0)) - sum(before.values()), 0.0)
        for work, seconds in (*before.items(), ("other", unassigned)):
            self._spent[work] = self._spent.get(work, 0.0) + seconds

    @contextmanager
    def on(self, work: Work) -> Iterator[None]:
        """Assign the time inside to this work, except for nested works."""
        before = self._turn_to(work)
        try:
            yield
        finally:
            self._turn_to(before)

    def timed(self, work: Work, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; waiting for them counts as this work."""
        while True:
            with self.on(work):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _turn_to(self, work: Work) -> Work:
        """Assign the time since the last switch to the current work, which is returned."""
        before, self._last = self._last, (time.perf_counter(), time.process_time())
        seconds, cpu_seconds = (now - then for now, then in zip(self._last, before, strict=True))
        self._spent[self._work] = self._spent.get(self._work, 0.0) + seconds
        if self._work in ("steps", "data"):
            self._stepping = (self._stepping[0] + seconds, self._stepping[1] + cpu_seconds)
            waited = seconds if self._work == "data" else 0.0
            self._window = (self._window[0] + seconds, self._window[1], self._window[2] + waited)
        so_far, self._work = self._work, work
        return so_far

    def step(self, phase: int, n_samples: int) -> None:
        """End a step of a phase: the time of steps and data since the last step is assigned to it."""
        self._turn_to(self._work)
        spent = self._phases.setdefault(
            phase, {"phase": phase, "steps": 0, "samples": 0, "seconds": 0.0, "cpu_seconds": 0.0}
        )
        amounts, self._stepping = (1, n_samples, *self._stepping), (0.0, 0.0)
        for key, amount in zip(("steps", "samples", "seconds", "cpu_seconds"), amounts, strict=True):
            spent[key] += amount
        self._window = (self._window[0], self._window[1] + n_samples, self._window[2])

    def window(self) -> tuple[float, float]:
        """Samples per second of steps and their data, and the share of waiting for data, since the last call."""
        (seconds, n_samples, waited), self._window = self._window, (0.0, 0, 0.0)
        seconds = max(seconds, 1e-9)
        return n_samples / seconds, waited / seconds

    def so_far(self) -> dict[str, float]:
        """Seconds since the run began, without the pauses between its parts."""
        self._turn_to(self._work)
        return {
            "seconds": round(sum(self._spent.values()), 3),
            "cpu_seconds": round(time.process_time() - self._cpu_origin, 1),
        }

    def phases(self) -> list[dict[str, float]]:
        """The phases so far: `phase`, `steps`, `samples`, and seconds and speed of their steps alone."""
        return [
            {**spent, "samples_per_second": spent["samples"] / max(spent["seconds"], 1e-9)}
            for _, spent in sorted(self._phases.items())
        ]

    def tree(self) -> dict[str, object]:
        """Everything as JSON values; a new clock continues from it."""
        so_far, shares = self.so_far(), self.shares()
        spent = {work: round(seconds, 3) for work, seconds in self._spent.items()}
        return {**so_far, "phases": self.phases(), "spent": spent, "shares": shares}

    def shares(self) -> dict[str, float]:
        """Each work's share of the seconds so far; their sum is 1."""
        self._turn_to(self._work)
        total = max(sum(self._spent.values()), 1e-9)
        return {work: seconds / total for work, seconds in self._spent.items()}

    def summary(self) -> str:
        """The shares of the time, in a line."""
        shares = sorted(self.shares().items(), key=lambda pair: -pair[1])
        return f"{self.so_far()['seconds']:,.0f} s: {', '.join(f'{work} {share:.1%}' for work, share in shares)}"
