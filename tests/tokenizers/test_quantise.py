"""Laws of vector quantisers."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskgen.tokenizers.image.quantise import FSQ, VQ

LEVELS = [(2,), (3,), (8, 5), (3, 4, 5), (2, 2, 2), (8, 8, 8)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(n_each: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 4 n, 2) latents about the (4, 2) corners of a square."""
    corners = torch.tensor(list(itertools.product([-4.0, 4.0], repeat=2)))
    return (corners.repeat_interleave(n_each, 0) + 0.1 * noise(4 * n_each, 2, seed=seed))[None], corners


@pytest.mark.parametrize("levels", LEVELS)
def test_lookup_is_the_inverse_of_the_codes_for_every_code(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(fsq.n_codes)[None]
    values = fsq.lookup(codes)
    assert len(values[0].unique(dim=0)) == fsq.n_codes
    half = fsq.sizes // 2
    inside = (values * half + (fsq.sizes % 2 == 0) * 0.5) / ((fsq.sizes - 1) * (1 + 1e-3) / 2)
    offset = torch.atanh((fsq.sizes % 2 == 0) * 0.5 / ((fsq.sizes - 1) * (1 + 1e-3) / 2))
    quantised, found, penalty = fsq(torch.atanh(inside) - offset)
    assert torch.equal(found, codes)
    torch.testing.assert_close(quantised, values)
    assert float(penalty) == 0


@pytest.mark.parametrize("levels", LEVELS)
def test_any_latent_gets_a_code_and_the_value_of_that_code(levels: tuple[int, ...]) -> None:
    fsq, z = FSQ(levels), 50 * noise(4, 100, len(levels))
    quantised, codes, _ = fsq(z)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < fsq.n_codes
    assert float(quantised.abs().max()) <= 1 + 1e-6
    torch.testing.assert_close(quantised, fsq.lookup(codes))


def test_fsq_passes_the_gradient_of_its_bound_straight_through() -> None:
    z = (0.5 * noise(2, 3, 2)).requires_grad_()
    FSQ((5, 7))(z)[0].sum().backward()
    wanted = (1 - z.detach().tanh() ** 2) * torch.tensor([2.0, 3.0]) * (1 + 1e-3) / torch.tensor([2.0, 3.0])
    torch.testing.assert_close(z.grad, wanted)


@pytest.mark.parametrize("levels", [(), (4, 1)])
def test_levels_that_hold_nothing_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels must each be at least 2"):
        FSQ(levels)


def test_vq_passes_the_gradient_straight_through() -> None:
    vq, z = VQ(4, 2), noise(1, 10, 2).requires_grad_()
    quantised, codes, _ = vq(z)
    quantised.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    torch.testing.assert_close(vq.eval()(z)[0], vq.lookup(vq(z)[1]))
    assert codes.shape == (1, 10)


def test_vq_takes_the_nearest_code_and_charges_the_distance() -> None:
    vq, z = VQ(4, 2, commitment=0.5).eval(), noise(2, 10, 2)
    vq.codebook.copy_(noise(4, 2, seed=1))
    quantised, codes, penalty = vq(z)
    assert torch.equal(codes, torch.cdist(z, vq.codebook[None]).argmin(2))
    torch.testing.assert_close(quantised, vq.codebook[codes])
    torch.testing.assert_close(penalty, 0.5 * (z - vq.codebook[codes]).square().mean())


def test_the_codebook_moves_in_training_only() -> None:
    vq, z = VQ(4, 2), noise(1, 20, 2)
    vq(z)
    before = vq.codebook.clone()
    vq.eval()(z + 1)
    assert torch.equal(vq.codebook, before)
    vq.train()(z + 1)
    assert not torch.equal(vq.codebook, before)


def test_codes_become_the_means_of_what_they_are_given() -> None:
    vq = VQ(4, 2, decay=0.5)
    for step in range(30):
        z, corners = clusters(seed=step)
        vq(z)
    distance, nearest = torch.cdist(corners, vq.codebook).min(1)
    assert nearest.unique().numel() == 4
    assert float(distance.max()) < 0.1


def test_one_step_without_memory_is_one_step_of_k_means() -> None:
    vq, z = VQ(3, 2, decay=0.0, revive_below=0.0), noise(1, 60, 2)
    vq(z)
    codes = torch.cdist(z, vq.codebook[None]).argmin(2)
    vq(z)
    means = torch.stack([z[codes == code].mean(0) for code in range(3)])
    torch.testing.assert_close(vq.codebook, means)


@pytest.mark.parametrize(("revive_below", "is_used"), [(0.05, True), (0.0, False)])
def test_dead_codes_are_revived_where_they_are_wanted(revive_below: float, is_used: bool) -> None:
    vq = VQ(32, 2, decay=0.8, revive_below=revive_below)
    vq(torch.full((1, 64, 2), 100.0))  # all codes start in one place, far off
    for step in range(40):
        codes = vq(5 * noise(1, 256, 2, seed=step))[1]
    n_used = len(codes.unique())
    assert n_used > 24 if is_used else n_used < 4


def test_codes_in_use_are_left_alone() -> None:
    first, second = VQ(4, 2, revive_below=0.0), VQ(4, 2, revive_below=0.05)
    z, _ = clusters()
    for _ in range(5):
        first(z)
        second(z)
    assert torch.equal(first.codebook, second.codebook)


def test_fewer_latents_than_codes_are_no_obstacle() -> None:
    vq = VQ(64, 2)
    quantised, codes, _ = vq(noise(1, 3, 2))
    assert bool(quantised.isfinite().all())
    assert codes.shape == (1, 3)
    assert bool(vq.codebook.isfinite().all())
