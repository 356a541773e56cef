"""The NFE as papers count it."""

from __future__ import annotations

import pytest

from maskgen.sample.nfe import scheduled_nfe
from maskgen.samplers import SAMPLERS, FieldSampler
from maskgen.samplers.guidance import Guidance


@pytest.mark.parametrize(
    ("steps", "low", "high", "nfe"),
    [(16, 0.1, 0.3, 19), (128, 0.18, 0.6, 181), (128, 0.05, 0.4, 173), (128, 0.3, 0.7, 179), (64, 0.25, 0.5, 80)],
)
def test_the_scheduled_evaluations_of_emigm_are_those_of_its_paper(
    steps: int, low: float, high: float, nfe: int
) -> None:
    sampler = SAMPLERS.build({"type": "emigm", "steps": steps})
    assert scheduled_nfe(sampler, Guidance(4.0, interval=(low, high))) == nfe
    assert scheduled_nfe(sampler, Guidance(1.0, interval=(low, high))) == steps


def test_without_a_schedule_there_is_no_such_count() -> None:
    samplers = [SAMPLERS.build(name) for name in ("first_hitting", "fast_dllm", "entropy_bounded", "autoregressive")]
    for sampler in [*samplers, FieldSampler("dpm", 8)]:
        assert scheduled_nfe(sampler, Guidance()) is None
