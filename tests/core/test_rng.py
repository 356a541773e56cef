"""Laws of randomness as a value."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.rng import Rng, fold


def test_equal_keys_fold_to_equal_seeds_and_others_do_not() -> None:
    assert fold(1, "a", 2) == fold(1, "a", 2)
    seeds = {
        fold(*keys) for keys in [(1, 2), (2, 1), (12,), ("12",), (1, 2, 0), ("1", 2), (), *((n,) for n in range(99))]
    }
    assert len(seeds) == 7 - 1 + 99  # (12,) is in both lists
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("draw", ["uniform", "normal", "gumbel"])
def test_a_row_depends_on_its_own_seed_only(draw: str) -> None:
    batch = getattr(Rng.per_sample(range(16)), draw)((16, 5, 3))
    alone = getattr(Rng.per_sample([11]), draw)((1, 5, 3))
    assert torch.equal(batch[11:12], alone)
    assert len(batch[:, 0, 0].unique()) == 16


@pytest.mark.parametrize("draw", ["uniform", "normal", "gumbel"])
def test_the_same_seed_gives_the_same_draws_and_the_next_draw_others(draw: str) -> None:
    first, second = Rng.stream(3, "x"), Rng.stream(3, "x")
    assert torch.equal(getattr(first, draw)((2, 4)), getattr(second, draw)((2, 4)))
    assert not torch.equal(getattr(first, draw)((2, 4)), getattr(Rng.stream(3, "x"), draw)((2, 4)))


def test_rng_of_keys_is_a_stream_and_a_list_of_seeds_is_refused() -> None:
    assert torch.equal(Rng(3, "x").uniform((2, 4)), Rng.stream(3, "x").uniform((2, 4)))
    for keys in ([], [[1, 2]]):
        with pytest.raises(TypeError, match=r"Rng\.per_sample\(seeds\) has a stream per row"):
            Rng(*keys)  # type: ignore[arg-type]


def test_a_fork_is_independent_and_leaves_its_parent_where_it_was() -> None:
    parent, same = Rng.per_sample([1, 2]), Rng.per_sample([1, 2])
    child = parent.fork("a").uniform((2, 4))
    assert torch.equal(parent.fork("a").uniform((2, 4)), child)
    assert not torch.equal(parent.fork("b").uniform((2, 4)), child)
    draws = parent.uniform((2, 4))
    assert torch.equal(draws, same.uniform((2, 4)))
    assert not torch.equal(draws, child)


def test_draws_leave_the_global_stream_alone() -> None:
    state = torch.get_rng_state()
    Rng.stream(0).normal((8, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_has_53_random_bits_below_one() -> None:
    uniform = Rng.stream(0).uniform((100_000,))
    assert uniform.dtype == torch.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert (uniform * 2**24 % 1 != 0).float().mean() > 0.99
    assert uniform.mean() == pytest.approx(0.5, abs=0.005)


def test_gumbel_has_its_moments_and_no_infinities() -> None:
    gumbel = Rng.stream(0).gumbel((100_000,))
    assert gumbel.isfinite().all()
    assert gumbel.mean() == pytest.approx(0.57722, abs=0.015)
    assert gumbel.var() == pytest.approx(torch.pi**2 / 6, abs=0.04)


def test_the_argmax_of_logits_plus_gumbel_is_a_categorical_draw() -> None:
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    drawn = (p.log() + Rng.stream(0).gumbel((40_000, 3))).argmax(1)
    assert torch.allclose(torch.bincount(drawn) / 40_000, p.float(), atol=0.01)


def test_a_permutation_holds_every_position_once_and_is_uniform() -> None:
    order = Rng.stream(0).permutation(6000, 3)
    assert torch.equal(order.sort(1).values, torch.arange(3).expand(6000, 3))
    counts = torch.bincount(order @ torch.tensor([9, 3, 1]))
    assert (counts[counts > 0] - 1000).abs().max() < 120
    assert (counts > 0).sum() == 6


def test_drawing_other_than_a_row_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="an Rng of 2 samples cannot draw 3 rows"):
        Rng.per_sample([0, 1]).uniform((3, 1))


@pytest.mark.parametrize("total", [6, 16, 40, 96])
@pytest.mark.parametrize("world", [1, 2])
def test_rows_of_a_batch_are_the_same_whoever_draws_them(total: int, world: int) -> None:
    each = total // world
    parts = [Rng.rows("a", 3, first=rank * each, count=each, total=total) for rank in range(world)]
    whole = Rng.rows("a", 3, first=0, count=total, total=total)
    for shape in ((5,), (2, 3)):
        drawn = torch.cat([part.normal((each, *shape)) for part in parts])
        assert torch.equal(drawn, whole.normal((total, *shape)))
    forked = torch.cat([part.fork("flip").uniform((3 * each,)) for part in parts])  # three draws a row
    assert torch.equal(forked, whole.fork("flip").uniform((3 * total,)))
    assert torch.equal(parts[0].whole.uniform((4,)), whole.whole.uniform((4,)))
    assert [part.place(2 * each) for part in parts] == [(2 * rank * each, 2 * total) for rank in range(world)]


def test_rows_do_not_repeat() -> None:
    drawn = Rng.rows(1, first=0, count=40, total=40).uniform((40, 2))
    assert len(drawn.flatten().unique()) == 80


def test_rows_outside_their_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows 3 \+ 2 are not in a batch of 4"):
        Rng.rows(0, first=3, count=2, total=4)
    with pytest.raises(ValueError, match="an Rng of 2 rows cannot draw 3"):
        Rng.rows(0, first=0, count=2, total=4).uniform((3,))
