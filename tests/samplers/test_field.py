"""Solvers of Gaussian processes: published values on N(0, 1), and laws for every solver on every process."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import DenoiseField, Field
from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.processes.gaussian import Scale, Target
from maskgen.samplers import FIELD_SAMPLERS, FieldSampler
from maskgen.samplers.gaussian.sampler import Spacing
from maskgen.samplers.gaussian.solvers import SolverName
from maskgen.schedules import Betas, CosineSquared, LogNormal, Rectified

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "solvers.json").read_text())
IMAGE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
EDM = Gaussian(LogNormal(), "edm", "exploding")
DDPM = Gaussian(Betas(), "eps", steps=1000)
PROCESSES = {
    "edm": EDM,
    "ddpm": DDPM,
    "flow": Gaussian(Rectified(), "flow", "straight"),
    "v": Gaussian(CosineSquared(), "v"),
    "x_0": Gaussian(Betas(), "x_0"),
}
every_solver = pytest.mark.parametrize("solver", get_args(SolverName))
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def ideal(process: Gaussian, std: float = 1.0, mean: float = 0.0) -> DenoiseField:
    """The best denoiser of data from N(mean, std^2)."""

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        a, b = (value[:, None, None].to(x_t) for value in process.amplitudes(t))
        x_0 = mean + a * std**2 / (a**2 * std**2 + b**2) * (x_t - a * mean)
        c = process.scalings(t)
        return Field((x_0 - c.c_skip[:, None, None] * x_t) / c.c_out[:, None, None])

    return denoise


def counted(denoise: DenoiseField, calls: list[float]) -> DenoiseField:
    def wrapped(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        calls.append(float(t[0]))
        return denoise(x_t, t)

    return wrapped


one = torch.ones(1, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize("n", [18, 40])
@pytest.mark.parametrize(
    ("solver", "key", "rel"),
    [
        ("heun", "sample_heun", 1e-6),
        ("euler", "sample_euler", 2e-4),  # diffusers takes these two steps in float32, where x - x_0 cancels
        ("dpm", "sample_dpmpp_2m", 2e-4),
    ],
)
def test_solvers_on_the_ideal_denoiser_give_the_published_values(solver: Any, key: str, n: int, rel: float) -> None:
    value, evaluations = GOLDEN[f"{key} n={n} (final, NFE)"]
    calls: list[float] = []
    found = FieldSampler(solver, n)(counted(ideal(EDM), calls), one, Rng.stream(0), process=EDM)
    assert float(found) == pytest.approx(value, rel=rel)
    assert len(calls) == evaluations == FieldSampler(solver, n).nfe


@pytest.mark.parametrize(
    ("n", "spacing", "name"), [(50, "leading", "ddim50"), (100, "leading", "ddim100"), (250, "linspace", "250")]
)
def test_ddim_gives_the_published_values(n: int, spacing: Any, name: str) -> None:
    value = GOLDEN[f"MDT DDIM eta0 respacing={name}: x0 for x_T=1 (ideal N(0,1) model)"]
    found = FieldSampler("ddim", n, spacing)(ideal(DDPM), one, Rng.stream(0), process=DDPM)
    # The published one of 250 steps was taken in float32; float64 arithmetic gives 0.99264185 as we do.
    assert float(found) == pytest.approx(value, rel=3e-6)


@pytest.mark.parametrize(("n", "name"), [(50, "ddim50"), (100, "ddim100")])
def test_ddpm_with_the_small_variance_gives_the_published_one(n: int, name: str) -> None:
    value = GOLDEN[f"MDT DDPM FIXED_SMALL respacing={name}: var(x0) (ideal 1)"]
    noise = Rng.stream("noise").normal((1, 40_000, 1))
    found = FieldSampler("ddpm", n, "leading")(ideal(DDPM), noise, Rng.stream(0), process=DDPM)
    assert float(found.var()) == pytest.approx(value, abs=4 * value * (2 / 40_000) ** 0.5)


@pytest.mark.parametrize("n", [18, 30])
def test_karras_noise_levels_are_the_published_ones(n: int) -> None:
    t, alpha = FieldSampler("heun", n).knots(EDM)
    sigma = ((1 - alpha) / alpha).sqrt()
    at = {18: [0, 1, 9, 16, 17], 30: [1, 15, 29]}[n]
    key = {18: "karras_sigmas n=18 [0,1,9,16,17]", 30: "karras n=30 [1,15,29]"}[n]
    assert sigma[at].tolist() == pytest.approx(IMAGE[key], rel=1e-6)
    assert torch.allclose(EDM.schedule.alpha(t), alpha, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "spacing", "key"),
    [
        (250, "linspace", "space_timesteps_1000_250 first5,last3,len"),
        (50, "leading", "space_timesteps_1000_ddim50 first3,last2,len"),
    ],
)
def test_spaced_times_are_the_published_steps(n: int, spacing: Any, key: str) -> None:
    t, _ = FieldSampler("ddim", n, spacing).knots(DDPM)
    steps = (t * 1000 - 1).round().long().flip(0).tolist()
    first, last, count = IMAGE[key]
    assert (steps[: len(first)], steps[-len(last) :], len(steps)) == (first, last, count)


@every_process
@every_solver
def test_with_many_steps_every_solver_finds_the_data_of_every_process(solver: SolverName, process: Gaussian) -> None:
    noise = Rng.stream("noise").normal((1, 2000, 1))
    found = FieldSampler(solver, 200)(ideal(process, 0.5, 0.3), noise, Rng.stream(0), process=process)
    assert float(found.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(found.std()) == pytest.approx(0.5, rel=0.05)


@every_solver
def test_every_target_scale_and_schedule_is_sampled_finitely(solver: SolverName) -> None:
    schedules = (LogNormal(), LogNormal(-1.2, 0.5), Rectified(), Betas(), CosineSquared())
    targets: tuple[Target, ...] = get_args(Target)
    scales: tuple[Scale, ...] = get_args(Scale)
    spacings: tuple[Spacing, ...] = ("auto", "trailing", "karras", "logsnr")
    for schedule, target, scale, spacing in product(schedules, targets, scales, spacings):
        process = Gaussian(schedule, target, scale)
        found = FieldSampler(solver, 3, spacing)(ideal(process), one.float(), Rng.stream(0), process=process)
        assert found.isfinite().all(), (schedule, target, scale, spacing)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_discrete_spacings_begin_in_noise_in_one_step_and_refuse_more_than_there_are(spacing: Any) -> None:
    t, _ = FieldSampler("ddim", 1, spacing).knots(DDPM)
    assert t.tolist() == [1.0]
    with pytest.raises(UserError, match="has 1000 times, got steps 1500"):
        FieldSampler("ddim", 1500, spacing).knots(DDPM)


@every_solver
def test_a_second_order_solver_needs_fewer_steps(solver: SolverName) -> None:
    if solver not in ("dpm", "heun"):
        return
    first = FieldSampler("ddim" if solver == "dpm" else "euler", 16)(ideal(EDM), one, Rng.stream(0), process=EDM)
    second = FieldSampler(solver, 16)(ideal(EDM), one, Rng.stream(0), process=EDM)
    assert abs(float(second) - 1) < abs(float(first) - 1) / 2


@pytest.mark.parametrize("target", ["eps", "x_0", "v", "flow"])
@every_solver
def test_what_the_network_predicts_does_not_matter(solver: SolverName, target: Any) -> None:
    noise = Rng.stream("noise").normal((2, 3, 2)).double()

    def sample(process: Gaussian) -> Tensor:
        return FieldSampler(solver, 8, "trailing")(ideal(process, 0.7), noise, Rng.stream(0), process=process)

    assert torch.allclose(sample(Gaussian(Betas(), target)), sample(Gaussian(Betas(), "eps")), atol=1e-5)


@every_process
@every_solver
def test_a_sample_depends_on_its_own_seed_only(solver: SolverName, process: Gaussian) -> None:
    sampler = FieldSampler(solver, 5, eta=1.0 if solver == "ddim" else 0.0)

    def sample(*seeds: int) -> Tensor:
        rng = Rng.per_sample(seeds)
        known = torch.full((len(seeds), 4, 2), torch.nan)
        known[:, 0] = 0.5
        return sampler(ideal(process), process.prior((len(seeds), 4, 2), rng), rng, process=process, known=known)

    assert torch.equal(sample(3, 4, 5)[1], sample(4)[0])
    assert not torch.equal(sample(3)[0], sample(4)[0])


@every_process
@every_solver
def test_what_is_known_comes_back_unchanged_and_the_rest_is_sampled(solver: SolverName, process: Gaussian) -> None:
    rng = Rng.per_sample(range(3))
    known = torch.full((3, 6, 2), torch.nan)
    known[0, :3], known[1, :, 0] = 0.25, -0.5
    found = FieldSampler(solver, 6)(ideal(process), process.prior((3, 6, 2), rng), rng, process=process, known=known)
    is_known = ~known.isnan()
    assert torch.equal(found[is_known], known[is_known])
    assert found.isfinite().all()
    assert found[~is_known].unique().numel() == int((~is_known).sum())


def test_the_network_sees_what_is_known_at_its_own_noise_level() -> None:
    known, seen = torch.full((1, 500, 1), 2.0), []
    known[:, 250:] = torch.nan

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        a, b = DDPM.amplitudes(t)
        seen.append(float(((x_t[0, :250, 0] - 2 * a) / b).std()))
        return ideal(DDPM)(x_t, t)

    noise = Rng.stream("noise").normal((1, 500, 1))
    FieldSampler("ddim", 10)(denoise, noise, Rng.stream(1), process=DDPM, known=known)
    assert seen[1:] == pytest.approx([1.0] * 9, abs=0.15)


def test_a_learned_variance_lies_between_its_bounds_at_sampling() -> None:
    noise, spread = Rng.stream("noise").normal((1, 20_000, 1)), []
    for share in (-1.0, 0.0, 1.0):

        def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None, share: float = share) -> Field:
            return Field(ideal(DDPM)(x_t, t).value, torch.full_like(x_t, share))

        spread.append(float(FieldSampler("ddpm", 20)(denoise, noise, Rng.stream(0), process=DDPM).var()))
    small = FieldSampler("ddpm", 20)(ideal(DDPM), noise, Rng.stream(0), process=DDPM)
    large = FieldSampler("ddpm", 20, variance="large")(ideal(DDPM), noise, Rng.stream(0), process=DDPM)
    assert spread[0] == pytest.approx(float(small.var()), rel=1e-3)
    assert spread[2] == pytest.approx(float(large.var()), rel=1e-3)
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("has_variance", [True, False])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_temperature_moves_a_step_between_its_mean_and_its_draw(solver: Any, has_variance: bool) -> None:
    x_0, noise = torch.full((64, 4, 1), 0.3), Rng.stream(1).normal((64, 4, 1))

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        a, b = (value[:, None, None].to(x_t) for value in DDPM.amplitudes(t))
        return Field((x_t - a * x_0) / b, torch.zeros_like(x_t) if has_variance else None)

    # Of two steps the second leads to the same x_0 whatever the first added: the first is looked at through it.
    seen: list[Tensor] = []

    def second(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        seen.append(x_t)
        return denoise(x_t, t)

    for temperature in (0.0, 0.5, 1.0):
        sampler = FieldSampler(solver, 2, eta=1.0)
        assert sampler.draws_noise
        sampler(second, noise, Rng.stream(3), process=DDPM, temperature=temperature)
    cold, warm, hot = seen[1::2]
    assert torch.allclose(warm, (cold + hot) / 2, atol=1e-5)
    assert (hot - cold).std() > 0.1


def test_solvers_that_draw_no_noise_say_so() -> None:
    quiet = [FieldSampler("dpm", 2), FieldSampler("heun", 2), FieldSampler("ddim", 2), FieldSampler("euler", 2)]
    assert not any(sampler.draws_noise for sampler in quiet)


def test_clipping_keeps_x_0_within_its_bound() -> None:
    found = FieldSampler("ddim", 4, clip=0.5)(ideal(DDPM), 3 * one, Rng.stream(0), process=DDPM)
    assert float(found) == 0.5


def test_watching_changes_nothing_and_counts_evaluations() -> None:
    seen: list[tuple[int, int]] = []
    sampler, noise = FIELD_SAMPLERS.build({"type": "heun", "steps": 4}), Rng.stream(2).normal((2, 3, 1))
    watched = sampler(
        ideal(EDM), noise, Rng.stream(0), process=EDM, on_step=lambda done, total, _: seen.append((done, total))
    )
    assert torch.equal(watched, sampler(ideal(EDM), noise, Rng.stream(0), process=EDM))
    assert seen == [(done, 7) for done in range(1, 8)]


@pytest.mark.parametrize("name", FIELD_SAMPLERS.names())
@pytest.mark.parametrize("steps", [1, 2])
def test_every_preset_works_in_one_step_and_two(name: str, steps: int) -> None:
    for process in PROCESSES.values():
        sampler = FIELD_SAMPLERS.build({"type": name, "steps": steps})
        assert sampler(ideal(process), one.float(), Rng.stream(0), process=process).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"eta": 2.0}, "eta must be in"),
        ({"order": 4}, "order must be 1, 2 or 3"),
        ({"sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
        ({"clip": -1.0}, "clip at least 0"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldSampler("ddim", **{"steps": 5, **arguments})
