"""Laws of remasking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.samplers.remask import REMASKS, Cap, NoRemask, Rescale


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
def test_every_policy_leaves_quotas_a_chance_between_zero_and_one(name: str) -> None:
    alpha_t, alpha_s = torch.triu_indices(50, 50, 1).double() / 49  # alpha_t < alpha_s
    sigma = REMASKS.build(name).sigma(alpha_t, alpha_s)
    assert ((sigma >= 0) & (sigma <= 1)).all()
    revealed = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    assert ((revealed >= 0) & (revealed <= 1 + 1e-12)).all()
    assert torch.allclose(alpha_t * (1 - sigma) + (1 - alpha_t) * revealed, alpha_s)  # the marginal is kept
    if REMASKS.build(name).is_off:
        assert (sigma == 0).all()


def test_where_nothing_is_visible_nothing_divides_by_zero() -> None:
    for remask in (NoRemask(), Cap(), Rescale()):
        assert remask.sigma(number(0), number(0.5)).isfinite().all()


@pytest.mark.parametrize("make", [Cap, Rescale])
def test_an_impossible_eta_is_refused(make: Any) -> None:
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got"):
            make(eta)
