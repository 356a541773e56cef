"""Laws of the loss weights."""

from __future__ import annotations

import typing

import pytest
import torch

from maskgen.objectives import MaskedTokens
from maskgen.objectives.weights import WEIGHTS, elbo_of_steps
from maskgen.schedules import SCHEDULES, Cosine, Linear, Schedule


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_a_weight_is_a_positive_number_a_row(schedule: str, weight: str) -> None:
    if (schedule, weight) == ("fixed", "elbo"):
        pytest.skip("it does not move, so its bound has no weight; the objective refuses the pair")
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    values = WEIGHTS[weight](SCHEDULES.build(schedule), t)
    assert values.shape == t.shape
    assert values.dtype == t.dtype
    assert (values > 0).all()


def test_uniform_is_one() -> None:
    assert (WEIGHTS["uniform"](Cosine(), torch.rand(9)) == 1).all()


def test_the_bound_of_the_linear_schedule_weighs_with_one_over_t() -> None:
    t = torch.linspace(0.1, 1, 7)
    assert torch.allclose(WEIGHTS["elbo"](Linear(), t), 1 / t)


every_schedule = pytest.mark.parametrize("schedule", [SCHEDULES.build(name) for name in SCHEDULES.names()], ids=str)


def test_a_linear_schedule_has_the_same_weight_in_steps_as_without() -> None:
    t = torch.tensor([0.6], dtype=torch.float64)
    assert elbo_of_steps(Linear(), t, 10).item() == pytest.approx(1.666667, abs=1e-6)
    for steps in (1, 4, 10):
        grid = torch.arange(1, steps + 1).double() / steps
        assert torch.allclose(elbo_of_steps(Linear(), grid, steps), 1 / grid)


def test_the_weight_of_steps_is_the_chance_to_be_revealed_in_one_of_them() -> None:
    grid = torch.arange(1, 5).double() / 4
    ratio = Cosine().mask_ratio(grid)
    before = torch.cat([Cosine().mask_ratio(torch.zeros(1).double()), ratio[:-1]])
    assert torch.allclose(elbo_of_steps(Cosine(), grid, 4), 4 * (ratio - before) / ratio)


@every_schedule
def test_many_steps_are_continuous_time(schedule: Schedule) -> None:
    t = torch.linspace(0.1003, 0.9003, 5, dtype=torch.float64)  # `betas` has a slope on either side of each step
    assert torch.allclose(elbo_of_steps(schedule, t, 1_000_000), schedule.elbo_weight(t), rtol=1e-4)


@every_schedule
@pytest.mark.parametrize("steps", [1, 5])
def test_in_all_steps_together_a_token_is_revealed_once(schedule: Schedule, steps: int) -> None:
    grid = torch.arange(1, steps + 1).double() / steps
    chance = (elbo_of_steps(schedule, grid, steps) * schedule.mask_ratio(grid)).mean()
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert chance.item() == pytest.approx((ends[0] - ends[1]).item(), rel=1e-9)


def test_an_objective_offers_exactly_the_weights_of_the_table() -> None:
    assert set(typing.get_args(typing.get_type_hints(MaskedTokens.__init__)["weight"])) == set(WEIGHTS)
