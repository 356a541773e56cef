"""Laws of diffusion heads: what is drawn is the distribution that the head's network knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.processes import Gaussian
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.samplers import FieldSampler
from maskgen.schedules import Betas

WIDTH = 2
PROCESS = Gaussian(Betas("cosine"), target="eps", steps=1000)
DDPM, DPM = FieldSampler("ddpm", 100, "linspace"), FieldSampler("dpm", 16)


def normal(std: float) -> object:
    """The exact eps-network of tokens normal(z, std), each number by itself; z is as wide as a token."""

    def net(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        a, b = (value[:, None] for value in PROCESS.amplitudes((t.double() + 1) / PROCESS.steps))
        x_0 = z + a * std**2 / ((a * std) ** 2 + b**2) * (x - a * z)
        return ((x - a * x_0) / b).to(x.dtype)

    return net


def head(z: Tensor, std: float = 0.5, where: Tensor | None = None) -> DiffusionHead:
    return DiffusionHead(z.double(), normal(std), PROCESS, WIDTH, where, has_variance=False)  # type: ignore[arg-type]


def means(*rows: float, length: int = 3) -> Tensor:
    """(B, L, D), the same z in all numbers of a row."""
    return torch.tensor(rows)[:, None, None].expand(-1, length, WIDTH)


@pytest.mark.parametrize("solver", [DDPM, DPM])
def test_a_known_normal_is_drawn_with_its_mean_and_variance(solver: FieldSampler) -> None:
    x_0 = head(means(*[1.5] * 64, length=32)).drawn_by(solver).sample(Rng.stream(0))
    assert x_0.shape == (64, 32, WIDTH)
    assert x_0.mean().item() == pytest.approx(1.5, abs=0.03)
    assert x_0.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("solver", [DDPM, DPM])
def test_guidance_of_normals_of_one_width_moves_their_mean_by_its_scale(solver: FieldSampler) -> None:
    guided = head(means(1.0)).guide(head(means(-0.5)), torch.tensor([3.0])).drawn_by(solver)
    there = head(means(-0.5 + 3.0 * 1.5)).drawn_by(solver)
    first, second = (one.sample(Rng.per_sample([7])) for one in (guided, there))
    assert torch.allclose(first, second, atol=1e-4)


def test_scale_one_changes_nothing_to_the_bit() -> None:
    plain = head(means(1.0, -2.0)).drawn_by(DDPM)
    for scale in (1.0, torch.ones(2)):
        guided = plain.guide(head(means(9.0, 9.0)), scale)
        assert torch.equal(guided.sample(Rng.per_sample([1, 2])), plain.sample(Rng.per_sample([1, 2])))


def test_each_row_has_its_own_scale_at_all_its_positions() -> None:
    where = torch.tensor([[True, False, True], [False, True, False]])
    z, null = means(1.0, 1.0)[where], means(0.0, 0.0)[where]
    guided = head(z, where=where).guide(head(null, where=where), torch.tensor([2.0, 5.0]))
    assert isinstance(guided.scale, Tensor)
    assert guided.scale.tolist() == [2.0, 2.0, 5.0]


@pytest.mark.parametrize("solver", [DDPM, DPM])
def test_a_token_depends_on_its_rows_seed_alone(solver: FieldSampler) -> None:
    where = torch.tensor([[True, False, True], [True, True, True]])
    z = means(0.3, -0.4)
    both = head(z[where], where=where).drawn_by(solver).sample(Rng.per_sample([5, 6]))
    alone = head(z[1:]).drawn_by(solver).sample(Rng.per_sample([6]))
    assert torch.allclose(both[2:], alone[0], atol=1e-6)
    fewer = torch.tensor([[False, False, True]])
    one = head(z[:1][fewer], where=fewer).drawn_by(solver).sample(Rng.per_sample([5]))
    assert torch.allclose(both[1:2], one, atol=1e-6)


def test_temperature_multiplies_the_noise_of_the_steps() -> None:
    drawn = head(means(*[0.0] * 64, length=32), std=1.0).drawn_by(DDPM)
    spreads = [drawn.sample(Rng.stream(0), temperature).std().item() for temperature in (0.5, 0.9, 1.0)]
    assert spreads[0] < spreads[1] < spreads[2]
    cold = [drawn.sample(Rng.stream(0), 0.0) for _ in range(2)]
    assert torch.equal(*cold)
    # Without noise the last step leads to the answer itself, which shrinks towards the mean.
    assert cold[0].std().item() < 0.5 * spreads[2]


def test_halves_undo_a_joined_pass() -> None:
    where = torch.tensor([[True, False], [True, True]])
    z = torch.arange(6.0)[:, None].expand(-1, WIDTH)
    first, second = head(z, where=where.repeat(2, 1)).halves()
    assert torch.equal(first.z, z[:3].double())
    assert torch.equal(second.z, z[3:].double())
    assert first.where is not None
    assert torch.equal(first.where, where)


def test_a_head_without_a_solver_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="drawn_by"):
        head(means(0.0)).sample(Rng.stream(0))
