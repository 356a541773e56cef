"""Plans of groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from maskgen.core.groups import PLASTIC, GroupPlan, roberts_order


@pytest.mark.parametrize("grid", [(7, 7), (16, 16), (5, 3), (24,)])
@pytest.mark.parametrize("order", ["raster", "halton", "qlds"])
@pytest.mark.parametrize(("n_groups", "alpha"), [(1, 2.2), (4, 1.0), (12, 2.2), (15, 6.0)])
def test_groups_grow_and_hold_every_position_once(
    grid: tuple[int, ...], order: str, n_groups: int, alpha: float
) -> None:
    plan = GroupPlan(grid, order, n_groups, alpha)  # type: ignore[arg-type]
    assert sum(plan.sizes) == plan.length
    assert len(plan.sizes) == n_groups
    assert min(plan.sizes) >= 1
    assert all(a <= b for a, b in pairwise(plan.sizes))
    assert torch.equal(plan.index.bincount(), torch.tensor(plan.sizes))
    assert torch.equal(plan.index[plan.positions], torch.arange(n_groups).repeat_interleave(torch.tensor(plan.sizes)))


def test_sizes_follow_the_published_power() -> None:
    plan = GroupPlan((24, 24), "qlds", 12, 2.2)
    ends = torch.tensor(plan.sizes).cumsum(0)
    wanted = 576 * (torch.arange(1, 13) / 12) ** 2.2
    assert (ends - wanted).abs().max() < 2


def test_the_limits_are_one_group_and_one_token_a_group() -> None:
    assert GroupPlan((4, 4), "raster", 1).sizes == (16,)
    assert GroupPlan((4, 4), "raster", 16, 3.0).sizes == (1,) * 16


def test_the_first_cells_of_the_sequence_are_computed_by_hand() -> None:
    cells = []
    for n in (1, 2, 3):
        u, v = (0.5 + n / PLASTIC) % 1, (0.5 + n / PLASTIC**2) % 1
        cells.append(round(16 * u) % 16 * 16 + round(16 * v) % 16)
    assert list(roberts_order((16, 16))[:3]) == cells


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_groups": 17}, "n_groups must lie in 1 ... 16"),
        ({"n_groups": 0}, "n_groups must lie in 1 ... 16"),
        ({"alpha": 0.5}, "alpha must be at least 1"),
        ({"order": "spiral"}, "order must be one of raster, halton, qlds"),
    ],
)
def test_impossible_plans_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupPlan((4, 4), **keys)  # type: ignore[arg-type]
