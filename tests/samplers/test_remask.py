"""Laws of remasking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.samplers.masked.remask import REMASKS, Cap, Held, Loop, LowConfidence, Rescale

GOLDEN: list[dict[str, float]] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())["remdm"]


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha_t", "alpha_s", "largest"), [(0.4, 0.6, 1.0), (0.5, 0.6, 0.8), (0.8, 0.9, 0.125), (0.9, 0.95, 0.055556)]
)
def test_the_largest_chance_is_that_of_remdm(alpha_t: float, alpha_s: float, largest: float) -> None:
    given = number(alpha_t), number(alpha_s)
    assert Cap(1.0).sigma(*given).item() == pytest.approx(largest, abs=1e-6)
    assert Rescale(1.0).sigma(*given).item() == pytest.approx(largest, abs=1e-6)
    assert Rescale(0.3).sigma(*given).item() == pytest.approx(0.3 * largest, abs=1e-6)
    assert Cap(0.1).sigma(*given).item() == pytest.approx(min(0.1, largest), abs=1e-6)


@pytest.mark.parametrize("name", REMASKS.names())
def test_every_policy_leaves_unmasking_a_chance_between_zero_and_one(name: str) -> None:
    alpha_t, alpha_s = torch.triu_indices(50, 50, 1).double() / 49  # alpha_t < alpha_s
    sigma = REMASKS.build(name).sigma(alpha_t, alpha_s)
    assert ((sigma >= 0) & (sigma <= 1)).all()
    revealed = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    assert ((revealed >= 0) & (revealed <= 1 + 1e-12)).all()
    assert torch.allclose(alpha_t * (1 - sigma) + (1 - alpha_t) * revealed, alpha_s)  # the marginal is kept
    if REMASKS.build(name).is_off:
        assert (sigma == 0).all()


def test_where_nothing_is_visible_nothing_divides_by_zero() -> None:
    for name in REMASKS.names():
        remask = REMASKS.build(name)
        assert remask.sigma(number(0), number(0.5)).isfinite().all()
        chances = remask.chances(
            number(0), number(0.5), torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4).double()
        )
        assert chances.isfinite().all()


@pytest.mark.parametrize("case", GOLDEN)
def test_sigma_and_the_chances_it_leaves_are_those_of_remdm(case: dict[str, float]) -> None:
    alpha_t, alpha_s, sigma = (number(case[key]) for key in ("alpha_t", "alpha_s", "sigma"))
    assert Rescale(1.0).sigma(alpha_t, alpha_s).item() == pytest.approx(case["sigma_max"])
    assert Cap(case["sigma"]).sigma(alpha_t, alpha_s).item() == pytest.approx(case["sigma"])
    assert ((alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)).item() == pytest.approx(case["masked_to_x"])


def test_a_chance_for_all_is_the_chance_of_each() -> None:
    is_revealed, confidence = torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3).double()
    alpha = torch.tensor([0.4, 0.8], dtype=torch.float64)
    chances = Cap(0.3).chances(alpha, alpha + 0.1, is_revealed, confidence)
    assert torch.equal(chances, Cap(0.3).sigma(alpha, alpha + 0.1)[:, None].expand(2, 3))


def test_low_confidence_shares_one_chance_among_the_revealed() -> None:
    is_revealed = torch.tensor([[True, False, True, True], [False] * 4])
    confidence = torch.tensor([[0.9, 0.0, 0.2, 0.5], [0.0] * 4], dtype=torch.float64)
    alpha_t, alpha_s = (torch.full((2,), value, dtype=torch.float64) for value in (0.8, 0.9))
    chances = LowConfidence().chances(alpha_t, alpha_s, is_revealed, confidence)
    expected = 0.125 * torch.softmax(torch.tensor([-0.9, -0.2, -0.5], dtype=torch.float64), 0)
    assert torch.allclose(chances[0, is_revealed[0]], expected)
    assert chances[0, 2] > chances[0, 3] > chances[0, 0]
    assert (chances[~is_revealed] == 0).all()


def test_held_has_the_three_phases_of_remdm() -> None:
    alpha = Held().alpha(torch.tensor([1.0, 0.775, 0.55, 0.3, 0.05, 0.025, 0.0], dtype=torch.float64))
    assert alpha.tolist() == pytest.approx([0, 0.45, 0.9, 0.9, 0.9, 0.95, 1])


def test_held_is_the_integral_of_its_derivative_and_undone_by_its_inverse() -> None:
    t = torch.cat([torch.linspace(0.001, 0.049, 9), torch.linspace(0.551, 0.999, 9)]).double()
    assert torch.allclose(Held().inverse(Held().alpha(t)), t)
    t = torch.cat([t, torch.linspace(0.06, 0.54, 9).double()]).requires_grad_()
    (slope,) = torch.autograd.grad(Held().alpha(t).sum(), t)
    assert torch.allclose(slope, Held().alpha_dot(t.detach()))


def test_loop_masks_again_only_while_alpha_stands_still() -> None:
    t = torch.tensor([0.9, 0.5, 0.3, 0.04], dtype=torch.float64)
    sigma = Loop(0.02).sigma(Held().alpha(t), Held().alpha(t - 0.01))
    assert sigma.tolist() == [0, 0.02, 0.02, 0]
    assert Loop(0.5).sigma(number(0.9), number(0.9)).item() == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"t_on": 0.01}, "t_off <= t_on"), ({"t_on": 1.0}, "t_on < 1"), ({"alpha_on": 1.0}, "alpha_on must be in")],
)
def test_impossible_phases_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Held(**arguments)


@pytest.mark.parametrize("make", [Cap, Rescale, Loop])
def test_an_impossible_eta_is_refused(make: Any) -> None:
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got"):
            make(eta)
