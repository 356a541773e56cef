"""What every combination of every entry of the sampler registries must keep; a new entry is tested unasked."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from maskgen.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.layout import LAYOUTS
from maskgen.samplers.order import ORDERS
from maskgen.samplers.quota import QUOTAS
from maskgen.samplers.remask import REMASKS
from tests.toys import MASK, waves

GRID = (6, 6)  # more than one block of the default layout
SPECS = [
    *SAMPLERS.names(),
    *(
        {"type": "masked", "order": order, "quota": quota, "remask": remask, "layout": layout, "steps": 5}
        for order, quota, remask, layout in product(ORDERS.names(), QUOTAS.names(), REMASKS.names(), LAYOUTS.names())
    ),
]
NAMES = [spec if isinstance(spec, str) else "-".join(map(str, list(spec.values())[1:5])) for spec in SPECS]
every_sampler = pytest.mark.parametrize("sampler", [SAMPLERS.build(spec) for spec in SPECS], ids=NAMES)


def holes(n_rows: int = 16) -> Tensor:
    """(B, 36): row i has i holes, the last row nothing but holes; a different set in each."""
    order = Rng.stream("holes").permutation(n_rows, 36)
    known = (Rng.stream("known").uniform((n_rows, 36)) * MASK).long()
    n_holes = torch.arange(n_rows)[:, None].where(torch.arange(n_rows)[:, None] < n_rows - 1, 36)
    return torch.where(order < n_holes, MASK, known)


def run(sampler: MaskedSampler, x_1: Tensor, rng: Rng, seen: list[Tensor] | None = None) -> Tensor:
    def on_step(done: int, total: int, x_s: Tensor) -> None:
        if seen is not None:
            seen.append(x_s)

    return sampler(waves, x_1, rng, mask_id=MASK, grid=GRID, on_step=on_step)


@every_sampler
def test_known_tokens_never_change_and_no_mask_is_left(sampler: MaskedSampler) -> None:
    x_1, seen = holes(), []
    before = x_1.clone()
    x_0 = run(sampler, x_1, Rng.per_sample(range(16)), seen)
    is_known = before != MASK
    for x_s in [*seen, x_0]:
        assert torch.equal(x_s[is_known], before[is_known])
    assert torch.equal(x_1, before)
    assert x_0.dtype == torch.int64
    assert ((x_0 >= 0) & (x_0 < MASK)).all()


@every_sampler
def test_a_sample_depends_on_its_own_seed_only(sampler: MaskedSampler) -> None:
    x_1 = holes()
    batch = run(sampler, x_1, Rng.per_sample(range(100, 116)))
    for row in (0, 1, 9, 15):
        alone = run(sampler, x_1[row : row + 1], Rng.per_sample([100 + row]))
        assert torch.equal(alone[0], batch[row])


@every_sampler
def test_seeds_differ_and_repeat(sampler: MaskedSampler) -> None:
    x_1 = torch.full((4, 36), MASK)
    x_0 = run(sampler, x_1, Rng.per_sample([0, 1, 2, 0]))
    assert torch.equal(x_0[0], x_0[3])
    assert not torch.equal(x_0[0], x_0[1])


@every_sampler
def test_rows_without_holes_pass_through(sampler: MaskedSampler) -> None:
    full = torch.zeros(2, 36, dtype=torch.long)
    assert torch.equal(run(sampler, full, Rng.per_sample([0, 1])), full)


@every_sampler
def test_steps_are_announced_and_counted_to_the_end(sampler: MaskedSampler) -> None:
    counted: list[tuple[int, int]] = []
    x_1 = torch.full((1, 36), MASK)
    sampler(
        waves, x_1, Rng.stream(0), mask_id=MASK, grid=GRID, on_step=lambda done, total, _: counted.append((done, total))
    )
    assert counted == [(done, len(counted)) for done in range(1, len(counted) + 1)]
