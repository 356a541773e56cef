"""Laws of the loss weights."""

from __future__ import annotations

import typing

import pytest
import torch

from maskgen.objectives import MaskedTokens
from maskgen.schedules import SCHEDULES, Cosine, Linear
from maskgen.weights import WEIGHTS


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_a_weight_is_a_positive_number_a_row(schedule: str, weight: str) -> None:
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


def test_an_objective_offers_exactly_the_weights_of_the_table() -> None:
    assert set(typing.get_args(typing.get_type_hints(MaskedTokens.__init__)["weight"])) == set(WEIGHTS)
