"""The singlestep solver against the algorithm of its authors, on a mixture whose denoiser is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Field
from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.samplers import FieldSampler
from maskgen.samplers.gaussian.singlestep import singlestep_orders
from maskgen.samplers.masked.loop import DPM_HEAD
from maskgen.schedules import Betas

HEAD = Gaussian(Betas("cosine"), target="eps", steps=1000)
MEAN, STD, WEIGHT = (
    torch.tensor(row, dtype=torch.float64) for row in ([-1.5, 0.2, 1.3], [0.2, 0.1, 0.3], [0.3, 0.3, 0.4])
)
N = 20_000


def clean(x: Tensor, a: float, b: float) -> Tensor:
    """E[x_0 | x = a x_0 + b n] of the mixture."""
    variance = (a * STD) ** 2 + b**2
    gap = x[..., None] - a * MEAN
    share = torch.softmax(WEIGHT.log() - variance.log() / 2 - gap**2 / (2 * variance), -1)
    return (share * (MEAN + a * STD**2 / variance * gap)).sum(-1)


def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
    a, b = (float(value) for value in HEAD.amplitudes(t[:1]))
    return Field((x_t - a * clean(x_t, a, b)) / b)


def published(x: Tensor, orders: list[int], first: float, last: float) -> Tensor:
    """Singlestep DPM-Solver++ as its paper writes it, evenly in log-SNR."""
    edges = torch.linspace(first, last, len(orders) + 1, dtype=torch.float64).tolist()
    for order, s, t in zip(orders, edges[:-1], edges[1:], strict=True):
        h = t - s

        def at(share: float, s: float = s, h: float = h) -> tuple[float, float, float, float]:
            a, b, b_s = (1 / math.sqrt(1 + math.exp(sign * 2 * level)) for sign, level in
                         ((-1, s + share * h), (1, s + share * h), (1, s)))  # fmt: skip
            return a, b, b / b_s, math.expm1(-share * h)

        def estimate(x: Tensor, share: float) -> Tensor:
            return clean(x, *at(share)[:2])

        m = estimate(x, 0.0)
        a, _, decay, phi = at(1.0)
        if order == 2:
            a_1, _, decay_1, phi_1 = at(0.5)
            slope = estimate(decay_1 * x - a_1 * phi_1 * m, 0.5) - m
            x = decay * x - a * phi * m - a * phi * slope
        else:
            a_1, _, decay_1, phi_1 = at(1 / 3)
            a_2, _, decay_2, phi_2 = at(2 / 3)
            slope = estimate(decay_1 * x - a_1 * phi_1 * m, 1 / 3) - m
            x_2 = decay_2 * x - a_2 * phi_2 * m + 2 * a_2 * (phi_2 / (h * 2 / 3) + 1) * slope
            x = decay * x - a * phi * m + 1.5 * a * (phi / h + 1) * (estimate(x_2, 2 / 3) - m)
    return x


def distance(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 of two samples."""
    return (x.flatten().sort().values - y.flatten().sort().values).abs().mean().item()


@pytest.mark.parametrize(("n", "orders"), [(8, [3, 3, 2]), (14, [3, 3, 3, 3, 2])])
def test_the_head_solver_is_that_of_its_authors_and_its_default_is_no_worse(n: int, orders: list[int]) -> None:
    rng = Rng("mixture", n)
    part = torch.multinomial(WEIGHT, N, replacement=True, generator=torch.Generator().manual_seed(0))
    truth = MEAN[part] + STD[part] * rng.normal((N,)).double()
    noise = rng.normal((1, N, 1)).double()
    last = float(HEAD.snr(torch.tensor([1e-3], dtype=torch.float64)).log() / 2)

    def sample(sampler: FieldSampler) -> Tensor:
        return sampler(denoise, noise, Rng(0), process=HEAD)

    known = published(noise, orders, -5.1, last)
    assert torch.allclose(sample(FieldSampler("dpm_single", n, order=3, sigma_max=math.exp(5.1))), known, atol=1e-6)
    assert distance(sample(FieldSampler("dpm_single", n, order=3, sigma_min=0.01)), truth) <= distance(known, truth)
    assert distance(known, truth) < distance(sample(FieldSampler("dpm", n, "karras")), truth) / 2


def test_the_head_of_emigm_is_the_singlestep_solver() -> None:
    assert FieldSampler("dpm_single", 8, "logsnr", order=3, sigma_min=0.01) == DPM_HEAD
    assert DPM_HEAD.nfe == 8


def test_evaluations_are_grouped_into_steps_of_the_order() -> None:
    assert singlestep_orders(8, 3, True) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert singlestep_orders(8, 3, False) == [1, 2, 3, 1, 2, 3, 1, 1]
    assert singlestep_orders(1, 3, True) == singlestep_orders(1, 3, False) == [1]
