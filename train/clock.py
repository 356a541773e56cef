"""What a run has spent: wall-clock and processor seconds, in all and in the steps of each phase, resumes included."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

Work = Literal["data", "logging", "saving", "validation", "previews"]
OVERHEAD: tuple[Work, ...] = ("logging", "saving")
"""What a run does for no step: `maskgen runs` shows their share."""


class Clock:
    """Counts on from what a checkpoint's info says was spent. Processor seconds compare runs that shared a machine."""

    def __init__(self, info: Mapping[str, Any] | None = None) -> None:
        info = info or {}
        self._origin = time.perf_counter() - float(info.get("seconds", 0))
        self._cpu_origin = time.process_time() - float(info.get("cpu_seconds", 0))
        self._phases: dict[int, dict[str, float]] = {int(one["phase"]): dict(one) for one in info.get("phases", ())}
        self._spent: dict[str, float] = dict(info.get("spent", {}))
        self._window = (0.0, 0)
        self.resume()

    @contextmanager
    def on(self, work: Work) -> Iterator[None]:
        """What goes by inside is spent on this."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(work, time.perf_counter() - began)

    def add(self, work: Work, seconds: float) -> None:
        """Seconds were spent on this."""
        self._spent[work] = self._spent.get(work, 0.0) + seconds

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
        self._window = (self._window[0] + self._last[0] - before[0], self._window[1] + n_samples)

    def window(self) -> tuple[float, float]:
        """Seconds of steps, and samples a second, since it was last asked."""
        seconds, n_samples = self._window
        self._window = (0.0, 0)
        return seconds, n_samples / max(seconds, 1e-9)

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

    def tree(self) -> dict[str, Any]:
        """All of it, for JSON; given back to a new clock it counts on."""
        spent = {work: round(seconds, 3) for work, seconds in self._spent.items()}
        return {**self.so_far(), "phases": self.phases(), "spent": spent, "shares": self.shares()}

    def shares(self) -> dict[str, float]:
        """Of the seconds so far: each work's, `steps` what is left of the steps without data and logs, `other`."""
        total = max(time.perf_counter() - self._origin, 1e-9)
        shares = {work: seconds / total for work, seconds in self._spent.items()}
        inside = shares.get("data", 0.0) + shares.get("logging", 0.0)
        shares["steps"] = max(sum(phase["seconds"] for phase in self._phases.values()) / total - inside, 0.0)
        return {**shares, "other": max(1 - sum(shares.values()), 0.0)}

    def told(self) -> str:
        """A line of where the time went."""
        shares = sorted(self.shares().items(), key=lambda pair: -pair[1])
        return f"{self.so_far()['seconds']:,.0f} s: {', '.join(f'{work} {share:.1%}' for work, share in shares)}"
