"""Laws of joint draws and of rates that differ from token to token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler, with_exponents
from maskgen.samplers.masked.joint import Joint, PerToken
from maskgen.samplers.masked.order import Random
from maskgen.samplers.masked.unmasking import Clock
from maskgen.schedules import SCHEDULES, Cosine, Linear, Polynomial, Schedule
from tests.toys import Given, state_dependent

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
Q = torch.tensor(GOLDEN["genmd4"]["q"], dtype=torch.float64)
W = torch.tensor(GOLDEN["genmd4"]["w"], dtype=torch.float64)
N = 30_000


def cut(schedule: Schedule, t: float, s: float, mu: Tensor, step: int = 0) -> list[float]:
    """Where the draw goes over from one token to the next, and to staying masked, by bisection."""
    low, high = torch.zeros(len(mu), dtype=torch.float64), torch.ones(len(mu), dtype=torch.float64)
    time, n = torch.tensor([t], dtype=torch.float64), torch.tensor([len(mu)])
    prediction = Categorical(mu.log().expand(len(mu), -1), torch.ones(1, len(mu), dtype=torch.bool))
    for _ in range(50):
        middle = (low + high) / 2
        clock = Clock(step, 2, time, n, n, len(mu))
        tokens = Joint(schedule).draw(prediction, clock, torch.full_like(time, s), 1.0, Given(middle))
        is_below = tokens <= torch.arange(len(mu))
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return high.tolist()


def test_chances_are_those_of_the_posterior() -> None:
    golden = GOLDEN["posterior_linear"]
    mu = torch.tensor(golden["mu"], dtype=torch.float64)
    ends = cut(Linear(), golden["t"], golden["s"], mu)
    assert torch.tensor(ends).diff(prepend=torch.zeros(1)).tolist() == pytest.approx(golden["unmask"])
    assert 1 - ends[-1] == pytest.approx(golden["stay"])


@pytest.mark.parametrize("name", sorted(set(SCHEDULES.names()) - {"fixed"}))
def test_a_scalar_schedule_reveals_what_two_stages_reveal(name: str) -> None:
    schedule = SCHEDULES.build(name)
    alpha_t, alpha_s = schedule.alpha(torch.tensor([0.75, 0.5], dtype=torch.float64)).tolist()
    expected = (alpha_s - alpha_t) / (1 - alpha_t) * Q.cumsum(0)
    assert cut(schedule, 0.75, 0.5, Q) == pytest.approx(expected.tolist())


def test_each_token_has_the_chance_of_its_own_rate() -> None:
    alpha_t, alpha_s = 1 - 0.75**W, 1 - 0.5**W
    expected = (Q * (alpha_s - alpha_t) / (1 - alpha_t)).cumsum(0)
    assert cut(PerToken(W), 0.75, 0.5, Q) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("schedule", [Linear(), PerToken(W)])
def test_each_row_has_the_chance_of_its_own_time(schedule: Schedule) -> None:
    t, s = torch.tensor([[0.9, 0.5], [0.1, 0.4]], dtype=torch.float64)
    where = torch.tensor([[True, False, True], [True, True, True]])
    uniform = torch.full((1, 1), 0.5, dtype=torch.float64)  # more than a short step can reveal
    prediction, n = Categorical(Q.log().expand(5, 3), where), torch.tensor([2, 3])
    tokens = Joint(schedule).draw(prediction, Clock(0, 2, t, n, n, 3), s, 1.0, Given(uniform))
    assert (tokens[:2] < 3).all()
    assert (tokens[2:] == 3).all()


@pytest.mark.parametrize("schedule", [Linear(), PerToken(W), SCHEDULES.build("exponential")])
def test_the_last_step_leaves_nothing(schedule: Schedule) -> None:
    assert cut(schedule, 0.5, 0.0, Q, step=1)[:2] == pytest.approx(Q.cumsum(0)[:2].tolist())
    logits = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    prediction = Categorical(logits, torch.ones(1, 1000, dtype=torch.bool))
    assert (torch.softmax(logits.double(), -1).cumsum(-1)[:, -1] < 1).any()  # rounding: the trap
    one, n = torch.ones(1, dtype=torch.float64), torch.tensor([1000])
    last = Joint(schedule).draw(prediction, Clock(1, 2, one / 2, n, n, 1000), 0 * one, 1.0, Given(one - 2.0**-53))
    assert (last == 2).all()


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_learned_rates_give_the_law_of_the_data_in_any_number_of_steps(steps: int) -> None:
    sampler = with_exponents(SAMPLERS.build({"type": "genmd4", "steps": steps}), W)
    masked: list[float] = []
    x_0 = sampler(
        state_dependent(Q, W),
        torch.full((N // 10, 10), 3),
        Rng.stream(0),
        mask_id=3,
        on_step=lambda _done, _total, x_s: masked.append((x_s == 3).double().mean().item()),
    )
    assert ((torch.bincount(x_0.flatten(), minlength=3) / N - Q).abs() <= 3 * (Q * (1 - Q) / N).sqrt()).all()
    for step, share in enumerate(masked):
        expected = float((Q * (1 - (step + 1) / steps) ** W).sum())  # E_q[s^w]
        assert abs(share - expected) <= 3 * (expected * (1 - expected) / N) ** 0.5


def test_the_same_rate_for_all_is_a_scalar_schedule() -> None:
    t = torch.tensor([0.9, 0.4], dtype=torch.float64)
    per_token, scalar = PerToken(torch.full((4,), 2.0)), Polynomial(2.0)
    for name in ("alpha", "alpha_dot", "mask_ratio", "elbo_weight"):
        expected = getattr(scalar, name)(t)[:, None].expand(2, 4)
        assert torch.allclose(getattr(per_token, name)(t), expected), name


def test_per_token_is_the_integral_of_its_derivative_and_undone_by_its_inverse() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    schedule = PerToken(W)
    assert torch.allclose(schedule.inverse(schedule.alpha(t)), t[:, None].expand(3, 3))
    slope = (schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6
    assert torch.allclose(slope, schedule.alpha_dot(t), atol=1e-6)


def test_a_rate_so_high_that_it_underflows_reveals_at_once() -> None:
    ends = cut(PerToken(torch.tensor([1.0, 1e6, 1.0])), 0.5, 0.25, Q)
    assert ends == pytest.approx([0.25, 0.55, 0.65])


def test_exponents_are_given_to_joint_samplers_only() -> None:
    for name in SAMPLERS.names():
        sampler = SAMPLERS.build(name)
        given = with_exponents(sampler, W)
        if isinstance(sampler.unmasking, Joint):
            assert isinstance(given.unmasking.schedule, PerToken)
            assert torch.equal(given.unmasking.schedule.exponents, W)
        else:
            assert given is sampler


def test_exponents_that_are_learned_stay_out_of_the_graph() -> None:
    raw = torch.nn.Parameter(W.float())
    assert not PerToken(raw).alpha(torch.tensor([0.5]).double()).requires_grad


@pytest.mark.parametrize("exponents", [torch.ones(2, 2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan])])
def test_impossible_exponents_are_refused(exponents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"exponents must be \(V,\) and positive"):
        PerToken(exponents)


def test_temperature_zero_reveals_modes_and_nothing_but_modes() -> None:
    x_0 = MaskedSampler(Random(), Joint(Cosine()), steps=4, temperature=0)(
        state_dependent(Q, torch.ones(3)), torch.full((5, 20), 3), Rng.stream(0), mask_id=3
    )
    assert (x_0 == 0).all()
