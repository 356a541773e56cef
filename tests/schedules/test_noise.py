"""Published noise levels of the Gaussian schedules."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.schedules import Betas, LogNormal, Rectified
from maskgen.schedules.noise import log_products

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())


def steps(*indices: int) -> torch.Tensor:
    """The times of DDPM's steps 0 ... 999."""
    return (torch.tensor(indices, dtype=torch.float64) + 1) / 1000


@pytest.mark.parametrize(
    ("law", "key", "indices"),
    [
        ("linear", "linear_alphas_cumprod[0,100,500,999]", (0, 100, 500, 999)),
        ("cosine", "cosine_alphas_cumprod[0,500,999]", (0, 500, 999)),
    ],
)
def test_products_equal_the_published_ones(law: Any, key: str, indices: tuple[int, ...]) -> None:
    assert Betas(law).alpha(steps(*indices)).tolist() == pytest.approx(GOLDEN[key], rel=1e-6)


@pytest.mark.parametrize(
    ("law", "n", "key", "indices"),
    [
        ("linear", 1000, "linear_beta[0,1,500,999]", (0, 1, 500, 999)),
        ("cosine", 1000, "cosine_beta[0,1,500,998,999]", (0, 1, 500, 998, 999)),
        ("linear", 250, "linear_beta_T250[0,249]", (0, 249)),
    ],
)
def test_betas_equal_the_published_ones(law: Any, n: int, key: str, indices: tuple[int, ...]) -> None:
    betas = -torch.expm1(log_products(law, n).diff())
    assert betas[list(indices)].tolist() == pytest.approx(GOLDEN[key], rel=1e-6)


def test_products_are_the_same_in_float32() -> None:
    t = steps(*range(1000))
    assert torch.allclose(Betas().alpha(t.float()).double(), Betas().alpha(t), rtol=1e-5)


def test_half_of_all_noise_levels_lie_below_the_median_of_the_law() -> None:
    medians = GOLDEN["lognormal sigma median P_mean -1.2/-0.6/0"]
    for mean, median in zip((-1.2, -0.6, 0.0), medians, strict=True):
        alpha = LogNormal(mean, 1.2).alpha(torch.tensor(0.5, dtype=torch.float64))
        assert math.sqrt((1 - alpha) / alpha) == pytest.approx(median, rel=1e-9)


def test_logarithms_of_sigma_have_the_mean_and_deviation_asked_for() -> None:
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_sigma = -LogNormal(-0.6, 1.2).log_snr(t) / 2
    assert float(log_sigma.mean()) == pytest.approx(-0.6, abs=1e-6)
    assert float(log_sigma.std()) == pytest.approx(1.2, rel=1e-3)


def test_the_rectified_noise_level_is_t_over_what_is_left() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose((-Rectified().log_snr(t) / 2).exp(), t / (1 - t))


def test_too_few_steps_for_a_beta_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 21"):
        Betas(steps=20)


def test_betas_raised_to_a_power_below_1_noise_sooner() -> None:
    """DiffMAE: linspace(1e-4, 0.02, 1000) ** 0.8."""
    t = torch.tensor([1, 2, 500, 1000], dtype=torch.float64) / 1000
    found = Betas(power=0.8).alpha(t)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64) ** 0.8
    assert torch.allclose(found, (1 - betas).cumprod(0)[[0, 1, 499, 999]])
    assert (found < Betas().alpha(t)).all()
    early = torch.tensor([0.1, 0.3], dtype=torch.float64)
    few, many = (Betas(steps=steps, power=0.8).alpha(early).log().tolist() for steps in (200, 1000))
    assert few == pytest.approx(many, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 0}, "power must be positive"),
        ({"power": 0.8, "law": "cosine"}, "power needs law linear"),
        ({"power": 0.8, "steps": 43}, "steps must be at least 44"),
    ],
)
def test_powers_that_are_no_betas_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Betas(**arguments)
