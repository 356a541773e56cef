"""Laws of the Gaussian process, for every target and scale, and EDM's published numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.processes.gaussian import Scale, Target
from maskgen.schedules import Betas, CosineSquared, Fixed, LogNormal, Rectified, Schedule

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
SCHEDULES = (Betas(), LogNormal(), Rectified(), CosineSquared())
every_target = pytest.mark.parametrize("target", get_args(Target))
every_scale = pytest.mark.parametrize("scale", get_args(Scale))
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)

t = torch.tensor([0.01, 0.3, 0.7, 0.97], dtype=torch.float64)
x_0, noise = (Rng.stream(name).normal((4, 5, 3)).double() for name in ("x_0", "noise"))


def at_sigma(process: Gaussian, sigma: float) -> Tensor:
    return process.schedule.inverse(1 / (1 + torch.tensor([sigma], dtype=torch.float64).square()))


@every_schedule
@every_scale
@every_target
def test_the_answer_aimed_at_says_x_0_exactly(target: Target, scale: Scale, schedule: Schedule) -> None:
    process = Gaussian(schedule, target, scale)
    answer = process.output_target(x_0, noise, t)
    assert torch.allclose(process.clean(answer, process.corrupt(x_0, t, noise), t), x_0, atol=1e-9)


@every_scale
def test_targets_are_what_they_are_called(scale: Scale) -> None:
    def answer(target: Target) -> Tensor:
        return Gaussian(CosineSquared(), target, scale).output_target(x_0, noise, t)

    a, b = (value[:, None, None] for value in Gaussian(CosineSquared(), "v", scale).amplitudes(t))
    assert torch.allclose(answer("eps"), noise)
    assert torch.allclose(answer("x_0"), x_0)
    assert torch.allclose(answer("v"), (a * noise - b * x_0) / (a**2 + b**2).sqrt())
    assert torch.allclose(answer("flow"), noise - x_0)


@every_schedule
@every_target
def test_scales_differ_by_a_factor_and_ask_the_network_the_same_thing(target: Target, schedule: Schedule) -> None:
    if target == "flow":
        return  # its network sees x_t as it is
    seen, told = [], []
    for scale in ("preserving", "exploding"):
        process = Gaussian(schedule, target, scale)
        c = process.scalings(t)
        seen.append(c.c_in[:, None, None] * process.corrupt(x_0, t, noise))
        told.append(c.c_noise)
    assert torch.allclose(seen[0], seen[1])
    assert torch.equal(told[0], told[1])


@every_schedule
@every_scale
def test_amplitudes_have_the_ratio_of_the_schedule_and_their_scale(scale: Scale, schedule: Schedule) -> None:
    a, b = Gaussian(schedule, "v", scale).amplitudes(t)
    assert torch.allclose((a / b).log() * 2, schedule.log_snr(t))
    kept = {"preserving": a**2 + b**2, "exploding": a, "straight": a + b}[scale]
    assert torch.allclose(kept, torch.ones_like(kept))


def test_the_velocity_is_the_derivative_of_a_straight_path() -> None:
    process, h = Gaussian(Rectified(), "flow", "straight"), 1e-6
    slope = (process.corrupt(x_0, t + h, noise) - process.corrupt(x_0, t - h, noise)) / (2 * h)
    assert torch.allclose(process.output_target(x_0, noise, t), slope, atol=1e-6)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("edm sd=")])
def test_preconditioning_equals_the_published_one(key: str) -> None:
    data, sigma = (float(part.split("=")[1]) for part in key.replace("edm ", "").split())
    process = Gaussian(LogNormal(), "edm", "exploding", sigma_data=data)
    c = process.scalings(at_sigma(process, sigma))
    found = {name: float(getattr(c, name)) for name in ("c_skip", "c_out", "c_in", "c_noise")}
    for name, value in found.items():
        assert value == pytest.approx(GOLDEN[key][name], rel=1e-5, abs=1e-8), name
    assert 1 / found["c_out"] ** 2 == pytest.approx(GOLDEN[key]["weight"], rel=1e-5)


def test_preconditioned_inputs_and_targets_have_unit_variance_for_data_of_the_deviation_it_is_told() -> None:
    process, n = Gaussian(LogNormal(), "edm", "exploding", sigma_data=0.5), 200_000
    data, drawn = 0.5 * Rng.stream("data").normal((1, n, 1)), Rng.stream("drawn").normal((1, n, 1))
    for time in (0.05, 0.5, 0.95):
        when = torch.tensor([time], dtype=torch.float64)
        seen = process.scalings(when).c_in * process.corrupt(data, when, drawn)
        assert float(seen.std()) == pytest.approx(1, abs=0.01)
        assert float(process.output_target(data, drawn, when).std()) == pytest.approx(1, abs=0.01)


def test_discrete_times_are_told_as_ddpm_counts_them() -> None:
    process = Gaussian(Betas(), "eps", steps=1000)
    assert process.scalings(torch.tensor([0.001, 1.0]).double()).c_noise.tolist() == pytest.approx([0, 999], abs=1e-4)


def test_signal_to_noise_ratios_equal_the_published_ones() -> None:
    process = Gaussian(Betas(), "eps", steps=1000)
    snr = process.snr((torch.tensor([0, 100, 250, 500, 999]) + 1) / 1000)
    assert snr.tolist() == pytest.approx(GOLDEN["snr_linear[0,100,250,500,999]"], rel=1e-5)


def test_what_is_left_of_the_data_at_time_one_is_nothing() -> None:
    for schedule in (LogNormal(), Rectified(), CosineSquared()):
        process = Gaussian(schedule, "v")
        a, b = process.amplitudes(torch.ones(1))
        assert (float(a), float(b)) == pytest.approx((0, 1), abs=1e-9)
    assert torch.equal(process.prior((2, 3, 4), Rng.stream(1)), Rng.stream(1).normal((2, 3, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data must be positive, got 0.0"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"schedule": Fixed()}, "schedule fixed has one level of noise"),
        ({"target": "edm", "steps": 10}, "edm needs continuous time"),
    ],
)
def test_impossible_processes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaussian(**arguments)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (Gaussian(steps=1), "steps of at least 2 .*, got 1 and preserving"),
        (Gaussian(), "steps of at least 2 .*, got 0 and preserving"),
        (Gaussian(CosineSquared(), "eps", steps=100), "target eps needs a schedule that ends above 0"),
    ],
)
def test_a_learned_variance_is_refused_where_its_bound_is_not_finite(process: Gaussian, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process.require_reverse_steps()
    for published in (Gaussian(Betas(), "eps", steps=1000), Gaussian(Betas("cosine"), "eps", steps=1000)):
        published.require_reverse_steps()
    Gaussian(CosineSquared(), "v", steps=100).require_reverse_steps()


def test_noise_that_is_nearly_all_there_is_leaves_a_finite_answer_in_float32() -> None:
    for target in get_args(Target):
        process = Gaussian(Rectified(), target, "straight")
        answer = process.output_target(x_0.float(), noise.float(), torch.tensor([1e-5, 1e-3, 0.999, 1 - 1e-7]).double())
        assert answer.isfinite().all(), target
        assert float(answer.abs().max()) < 1e3 * math.sqrt(2), target
