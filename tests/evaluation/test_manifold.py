"""Precision, recall, density, coverage and memorisation on sets whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.manifold import manifold, memorisation, radii


def line(n: int, start: float = 0.0) -> Tensor:
    """(n, 2): points one apart."""
    return torch.stack([start + torch.arange(n).float(), torch.zeros(n)], 1)


def test_radii_reach_to_the_kth_of_the_others() -> None:
    assert radii(line(6), 2).tolist() == pytest.approx([4, 1, 1, 1, 1, 4])


def test_equal_sets_have_everything() -> None:
    x = Rng.stream("x").normal((60, 4))
    found = manifold(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density >= 1


def test_sets_far_apart_have_nothing() -> None:
    found = manifold(line(20), line(20, start=1000))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_half_of_the_samples_on_the_manifold_is_a_precision_of_one_half() -> None:
    real = line(40)
    samples = torch.cat([line(20), line(20, start=5000)])
    found = manifold(samples, real)
    assert found.precision == 0.5
    assert found.recall >= 0.5


def test_samples_of_one_mode_of_two_have_precision_and_half_the_recall_and_coverage() -> None:
    near, far = line(30), line(30, start=5000)
    found = manifold(near + 0.25, torch.cat([near, far]))
    assert found.precision == 1
    assert found.recall == 0.5
    assert found.coverage == pytest.approx(0.5)


def test_one_real_image_among_many_samples_makes_density_not_coverage() -> None:
    real = line(40)
    found = manifold(real[[20]] + 0.01 * Rng.stream("x").normal((40, 2)), real)
    assert found.precision == 1
    assert found.density >= 1
    assert found.coverage < 0.3


@pytest.mark.parametrize("k", [3, 5])
def test_it_agrees_with_torch_fidelity(k: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    a, b = Rng.stream("a").normal((200, 5)), Rng.stream("b").normal((150, 5)) * 0.7
    found = manifold(a, b, k=k)
    precision, recall = theirs.calculate_precision_recall_full(a, b, neighborhood=k)
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-6)


def test_copies_are_found_and_named() -> None:
    train = Rng.stream("train").normal((400, 8))
    honest, more = Rng.stream("test").normal((200, 8)), Rng.stream("more").normal((140, 8))
    copies = torch.cat([train[:60] + 1e-3, more])
    found, clean = memorisation(copies, train), memorisation(honest, train)
    assert found.copied == pytest.approx(0.3, abs=0.01)
    assert clean.copied < 0.02
    assert found.authentic < clean.authentic - 0.1
    assert found.nearest[:60].tolist() == list(range(60))
    assert set(found.closest(60).tolist()) == set(range(60))


def test_a_set_no_larger_than_k_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 5 images in each set, got 5 and 9"):
        manifold(line(5), line(9))
    with pytest.raises(ValueError, match="NaN"):
        manifold(line(9) * torch.nan, line(9))
