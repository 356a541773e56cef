"""Laws of the compute subset."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset


@pytest.mark.parametrize(("keep_ratio", "n_kept"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_the_number_kept_is_rounded_and_never_zero(keep_ratio: float, n_kept: int) -> None:
    subset = TokenSubset.draw(4, 10, keep_ratio, Rng.stream(0))
    assert subset.keep.shape == (4, n_kept)
    assert (subset.keep.diff(dim=1) > 0).all()


def test_gather_undoes_scatter_for_tokens_and_for_features() -> None:
    subset = TokenSubset.draw(3, 8, 0.5, Rng.stream(0))
    for x in (torch.randn(3, 4, 2), torch.randn(3, 4), torch.arange(12).view(3, 4)):
        assert torch.equal(subset.gather(subset.scatter(x)), x)


def test_scatter_fills_what_was_dropped() -> None:
    subset = TokenSubset.draw(3, 8, 0.5, Rng.stream(0))
    fill = torch.tensor([5.0, 6.0])
    whole = subset.scatter(torch.zeros(3, 4, 2), fill)
    assert (whole[~subset.is_kept()] == fill).all()
    assert (whole[subset.is_kept()] == 0).all()


def test_scatter_after_gather_changes_dropped_positions_only() -> None:
    x, subset = torch.randn(3, 8, 2), TokenSubset.draw(3, 8, 0.5, Rng.stream(0))
    assert torch.equal(subset.scatter(subset.gather(x)), x * subset.is_kept()[..., None])


def test_gradients_reach_both_the_kept_tokens_and_the_fill() -> None:
    subset = TokenSubset.draw(3, 8, 0.25, Rng.stream(0))
    x, fill = torch.randn(3, 2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    subset.scatter(x, fill).sum().backward()
    assert x.grad is not None
    assert fill.grad is not None
    assert (x.grad == 1).all()
    assert (fill.grad == 18).all()


def test_every_position_is_kept_equally_often() -> None:
    share = TokenSubset.draw(8000, 6, 0.5, Rng.stream(0)).is_kept().double().mean(0)
    assert (share - 0.5).abs().max() < 0.03


def test_a_row_depends_on_its_own_seed_only() -> None:
    batch = TokenSubset.draw(16, 8, 0.5, Rng.per_sample(range(16)))
    assert torch.equal(batch.keep[7:8], TokenSubset.draw(1, 8, 0.5, Rng.per_sample([7])).keep)


@pytest.mark.parametrize("keep_ratio", [0.0, -0.5, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(keep_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got"):
        TokenSubset.draw(1, 8, keep_ratio, Rng.stream(0))


def test_a_known_count_gives_the_same_subset_without_counting() -> None:
    is_kept = TokenSubset.draw(5, 8, 0.4, Rng.stream(0)).is_kept()
    counted, known = TokenSubset.of(is_kept), TokenSubset.of(is_kept, 3)
    assert torch.equal(counted.keep, known.keep)
    assert counted.valid is known.valid is None
    assert TokenSubset.of(is_kept.to("meta"), 3).keep.shape == (5, 3)


@pytest.mark.parametrize("n", [[3, 3], [1, 5], [0, 8], [0, 0], [8, 8]])
def test_the_rest_is_what_is_not_kept(n: list[int]) -> None:
    is_kept = torch.arange(8) < torch.tensor(n)[:, None]
    assert torch.equal(TokenSubset.of(is_kept).rest().is_kept(), ~is_kept)


def test_packed_tokens_are_those_that_are_meant_row_by_row() -> None:
    x, is_kept = torch.arange(16).view(2, 8), torch.arange(8) >= torch.tensor([[5], [2]])
    subset = TokenSubset.of(is_kept)
    assert torch.equal(subset.pack(subset.gather(x)), x[is_kept])
