"""What every published sampler, and every two entries of the registries together, must keep; new ones unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.layout import LAYOUTS
from maskgen.samplers.masked.order import ORDERS
from maskgen.samplers.masked.remask import REMASKS
from maskgen.samplers.masked.unmasking import UNMASKINGS
from tests.toys import MASK, waves

GRID = (6, 6)  # more than one block of the default layout
AXES = {"order": ORDERS.names(), "unmasking": UNMASKINGS.names(), "remask": REMASKS.names(), "layout": LAYOUTS.names()}


def is_possible(choice: tuple[str, ...]) -> bool:
    """Joint draws mask nothing again."""
    _, unmasking, remask, _ = choice
    return unmasking != "joint" or remask == "none"


def pairs(choice: tuple[str, ...]) -> set[tuple[str, str]]:
    """Every two entries of a choice, each with the axis it is of."""
    return set(combinations([f"{axis}={name}" for axis, name in zip(AXES, choice, strict=True)], 2))


def covering() -> list[tuple[str, ...]]:
    """Choices (order, unmasking, remask, layout) in which every possible pair of entries occurs."""
    left = {choice: pairs(choice) for choice in product(*AXES.values()) if is_possible(choice)}
    chosen = []
    while left:
        chosen.append(max(left, key=lambda choice: len(left[choice])))
        seen = left[chosen[-1]]
        left = {choice: rest - seen for choice, rest in left.items() if rest - seen}
    return chosen


CHOICES = covering()
SPECS = [
    *SAMPLERS.names(),
    *({"type": "masked", "steps": 5, **dict(zip(AXES, choice, strict=True))} for choice in CHOICES),
]
NAMES = [*SAMPLERS.names(), *("-".join(choice) for choice in CHOICES)]
BUILT = dict(zip(NAMES, map(SAMPLERS.build, SPECS), strict=True))


def every_sampler(law: Callable[[MaskedSampler], None]) -> Callable[[], None]:
    """A test that holds a law for all samplers."""

    def test() -> None:
        for name, sampler in BUILT.items():
            try:
                law(sampler)
            except Exception as error:
                raise AssertionError(f"sampler {name}") from error

    return test


N_HOLES = torch.tensor([0, 1, 2, 5, 9, 20, 31, 36])
ROWS = len(N_HOLES)


def holes() -> Tensor:
    """(B, 36): row i has N_HOLES[i] holes, a different set in each."""
    order = Rng.stream("holes").permutation(ROWS, 36)
    known = (Rng.stream("known").uniform((ROWS, 36)) * MASK).long()
    return torch.where(order < N_HOLES[:, None], MASK, known)


class Tilted:
    """`waves` that lean towards a label."""

    def __init__(self, keeps_rows: bool = False) -> None:
        self.traits = NetworkTraits(keeps_rows=keeps_rows)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        assert cond is not None
        assert where is not None
        logits = waves(x_t, t.double()).logits + cond.labels[:, None, None] * torch.linspace(0, 1, MASK)
        return Categorical(logits[where], where)


def run(sampler: MaskedSampler, x_1: Tensor, rng: Rng, seen: list[Tensor] | None = None) -> Tensor:
    def on_step(done: int, total: int, x_s: Tensor) -> None:
        if seen is not None:
            seen.append(x_s)

    return sampler(waves, x_1, rng, mask_id=MASK, grid=GRID, on_step=on_step)


@every_sampler
def test_known_tokens_never_change_and_no_mask_is_left(sampler: MaskedSampler) -> None:
    x_1, seen = holes(), []
    before = x_1.clone()
    x_0 = run(sampler, x_1, Rng.per_sample(range(ROWS)), seen)
    is_known = before != MASK
    for x_s in [*seen, x_0]:
        assert torch.equal(x_s[is_known], before[is_known])
    assert torch.equal(x_1, before)
    assert x_0.dtype == torch.int64
    assert ((x_0 >= 0) & (x_0 < MASK)).all()


@every_sampler
def test_a_sample_depends_on_its_own_seed_only(sampler: MaskedSampler) -> None:
    x_1 = holes()
    batch = run(sampler, x_1, Rng.per_sample(range(100, 100 + ROWS)))
    for row in (1, 6):
        alone = run(sampler, x_1[row : row + 1], Rng.per_sample([100 + row]))
        assert torch.equal(alone[0], batch[row])


@every_sampler
def test_rows_that_need_nothing_change_nothing(sampler: MaskedSampler) -> None:
    x_1 = holes()
    samples = [
        sampler(
            Guidance(2.0).bind(denoiser, Condition(torch.arange(ROWS) % 3)),
            x_1,
            Rng.per_sample(range(ROWS)),
            mask_id=MASK,
        )
        for denoiser in (Tilted(), Tilted(keeps_rows=True))
    ]
    assert torch.equal(*samples)


@every_sampler
def test_seeds_differ_and_repeat(sampler: MaskedSampler) -> None:
    x_1, sampler = torch.full((4, 36), MASK), replace(sampler, temperature=1.0)
    x_0 = run(sampler, x_1, Rng.per_sample([0, 1, 2, 0]))
    assert torch.equal(x_0[0], x_0[3])
    assert not torch.equal(x_0[0], x_0[1])


@every_sampler
def test_rows_without_holes_pass_through(sampler: MaskedSampler) -> None:
    full = torch.zeros(2, 36, dtype=torch.long)
    assert torch.equal(run(sampler, full, Rng.per_sample([0, 1])), full)


@every_sampler
def test_steps_are_announced_one_by_one_and_are_no_more_than_was_said(sampler: MaskedSampler) -> None:
    counted: list[tuple[int, int]] = []
    x_1 = torch.full((1, 36), MASK)
    sampler(
        waves, x_1, Rng.stream(0), mask_id=MASK, grid=GRID, on_step=lambda done, total, _: counted.append((done, total))
    )
    totals = {total for _, total in counted}
    assert [done for done, _ in counted] == list(range(1, len(counted) + 1))
    assert len(totals) == 1
    assert len(counted) <= totals.pop()


def test_every_possible_pair_of_entries_is_tried() -> None:
    tried = set().union(*map(pairs, CHOICES))
    possible = [pairs(choice) for choice in product(*AXES.values()) if is_possible(choice)]
    assert tried == set().union(*possible)
    assert len(CHOICES) < len(possible) / 4
