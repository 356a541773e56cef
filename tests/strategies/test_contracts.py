"""What every mask strategy must do, over the registry; guided ones are told something random."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.strategies import STRATEGIES, Guide, MaskStrategy, first, spread_evenly

N = 12
every_strategy = pytest.mark.parametrize("name", STRATEGIES.names())
every_grid = pytest.mark.parametrize("grid", [(7, 7), (5, 9), (30,), (1, 1), (2, 1), (3, 4, 5), (2, 3, 2, 3)], ids=str)


def built(name: str) -> MaskStrategy:
    return STRATEGIES.build(name)


def guide(grid: tuple[int, ...], n_rows: int = N, progress: float = 0.5) -> Guide:
    return Guide(Rng.per_sample(range(n_rows)).normal((n_rows, math.prod(grid))), progress)


def mask(name: str, ratio: float, grid: tuple[int, ...], rng: Rng) -> Tensor:
    return built(name).mask(ratio, N, grid, rng, guide(grid))


@every_strategy
@every_grid
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_every_ratio_masks_exactly_its_share_of_every_row(name: str, grid: tuple[int, ...], ratio: float) -> None:
    length = math.prod(grid)
    counts = mask(name, ratio, grid, Rng.stream(0)).sum(1)
    assert counts.tolist() == [min(max(round(ratio * length), 1), length)] * N


@every_strategy
@every_grid
def test_what_a_ratio_masks_a_larger_one_masks_too(name: str, grid: tuple[int, ...]) -> None:
    small, large = (mask(name, ratio, grid, Rng.stream(0)) for ratio in (0.4, 0.7))
    assert (large | ~small).all()


@every_strategy
def test_a_mask_depends_on_the_seed_and_guide_of_its_own_row_only(name: str) -> None:
    grid, rows = (6, 8), [7, 2, 9]
    together = built(name).scores(N, grid, Rng.per_sample(range(N)), guide(grid))
    told = Guide(guide(grid).scores[rows], 0.5)
    alone = built(name).scores(len(rows), grid, Rng.per_sample(rows), told)
    assert torch.equal(together[rows], alone)


@every_strategy
def test_processes_draw_the_masks_that_one_would(name: str) -> None:
    grid = (4, 5)
    told = guide(grid, 40)
    whole = built(name).scores(40, grid, Rng.rows(0, first=0, count=40, total=40), told)
    part = Guide(told.scores[20:], told.progress)
    assert torch.equal(whole[20:], built(name).scores(20, grid, Rng.rows(0, first=20, count=20, total=40), part))


@every_strategy
def test_a_line_is_a_grid_of_one_row(name: str) -> None:
    line, row = (built(name).scores(N, grid, Rng.stream(0), guide(grid)) for grid in ((30,), (1, 30)))
    assert line.equal(row)


@every_strategy
def test_rows_differ(name: str) -> None:
    assert len({tuple(row) for row in mask(name, 0.5, (7, 7), Rng.stream(0)).int().tolist()}) > N // 2


@every_strategy
def test_no_place_is_always_or_never_masked(name: str) -> None:
    grid, n_rows = (7, 7), 2000
    share = built(name).mask(0.6, n_rows, grid, Rng.stream(1), guide(grid, n_rows)).double().mean(0)
    assert share.min() > 0.1
    assert share.max() < 0.97


def test_of_equal_scores_the_count_is_exact() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert first(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert first(scores, torch.tensor([[1], [3]])).sum(1).tolist() == [1, 3]


def test_evenly_spread_scores_keep_their_order_and_the_mean_count_of_a_coin() -> None:
    scores = Rng.stream(0).normal((4000, 10))
    even = spread_evenly(scores, Rng.stream(1))
    assert torch.equal(even.argsort(1), scores.argsort(1))
    counts = (even < 0.37).sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert counts.double().mean().item() == pytest.approx(3.7, abs=0.03)
