"""Where the time went, and what is seen to before a run begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.recipes.budget import TrainSettings
from maskgen.train.clock import Clock
from maskgen.train.start import require_shared, spent_until, warn_of_threads


def test_a_clock_says_where_the_time_went_and_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def passing(seconds: float) -> Iterator[float]:
        nonlocal now
        while True:
            now += seconds
            yield seconds

    def spend(clock: Clock) -> None:
        nonlocal now
        now += 2
        rows = clock.timed("data", passing(1))
        with clock.on("steps"):
            for is_logged in (False, True):
                next(rows)
                now += 2
                clock.step(0, 4)
                if is_logged:
                    with clock.on("logging"):
                        now += 1
                        with clock.on("saving"):
                            now += 3

    first = Clock()
    spend(first)
    shares = {"other": 2 / 12, "data": 2 / 12, "steps": 4 / 12, "logging": 1 / 12, "saving": 3 / 12}
    assert first.shares() == pytest.approx(shares)
    assert first.summary() == "12 s: steps 33.3%, saving 25.0%, other 16.7%, data 16.7%, logging 8.3%"
    assert first.window() == pytest.approx((8 / 6, 2 / 6))
    kept, second = json.dumps(first.tree()), Clock()
    now += 12
    second.count_on(json.loads(kept))
    spend(second)
    assert second.tree()["spent"] == {"other": 16, "data": 4, "steps": 8, "logging": 2, "saving": 6}
    assert second.phases()[0]["seconds"] == 12
    assert second.so_far()["seconds"] == 36
    assert sum(second.shares().values()) == pytest.approx(1)


def test_a_resumed_run_remembers_the_time_its_checkpoint_took(tmp_path: Path) -> None:
    info = {"phases": [{"phase": 0, "steps": 3}], "seconds": 9.0, "spent": {"steps": 9.0}}
    assert spent_until(tmp_path, info) == info
    later = {**info, "seconds": 10.0, "spent": {"steps": 9.0, "saving": 1.0}}
    (tmp_path / "cost.json").write_text(json.dumps(later))
    assert spent_until(tmp_path, info) == later
    (tmp_path / "cost.json").write_text(json.dumps({**later, "phases": [{"phase": 0, "steps": 4}]}))
    assert spent_until(tmp_path, info) == info, "that of steps that are lost"


def test_every_phase_must_be_shared_by_the_processes() -> None:
    phases = [{"steps": 4}, {"steps": 4, "batch_size": 6}]
    settings = TrainSettings.model_validate({"batch_size": 8, "phases": phases})
    require_shared(settings, 2)
    with pytest.raises(UserError, match=r"phase 2 \(steps up to 8\).* = 6 must be a multiple of the 4 processes"):
        require_shared(settings, 4)
    require_shared(settings, 3, step=4)  # the first is over


def test_another_number_of_threads_than_before_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    start: Any = SimpleNamespace(path=Path("checkpoint-3"), info={"threads": torch.get_num_threads()})
    warn_of_threads(start)
    assert not capsys.readouterr().err
    start.info["threads"] += 1
    warn_of_threads(start)
    assert "rounding is not; OMP_NUM_THREADS=" in capsys.readouterr().err
