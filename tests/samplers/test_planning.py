"""Path planning (P2, arXiv 2502.03540)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.masked.order import Confidence
from maskgen.samplers.masked.remask import Planned
from maskgen.samplers.masked.unmasking import Even, Scheduled
from maskgen.schedules import Linear
from tests.toys import MASK, waves

N = 6


def sampled(sampler: MaskedSampler, x_1: Tensor) -> list[Tensor]:
    """x_s after each step."""
    seen: list[Tensor] = []
    sampler(waves, x_1, Rng.per_sample(range(len(x_1))), mask_id=MASK, on_step=lambda *done: seen.append(done[2]))
    return seen


def masks(length: int = 24) -> Tensor:
    x_1 = torch.full((N, length), MASK)
    x_1[1, :5] = 1
    x_1[2] = 2
    return x_1


def test_random_planning_that_masks_nothing_again_is_ancestral_sampling_to_the_bit() -> None:
    found = sampled(SAMPLERS.build({"type": "p2", "planner": "random", "eta": 0, "steps": 7}), masks())
    assert all(map(torch.equal, found, sampled(SAMPLERS.build({"type": "ancestral", "steps": 7}), masks())))


def test_self_planning_that_masks_nothing_again_reveals_the_most_confident_tokens() -> None:
    found = sampled(SAMPLERS.build({"type": "p2", "eta": 0, "steps": 6}), masks())
    plain = MaskedSampler(Confidence(), Scheduled(Linear()), steps=6)
    assert all(map(torch.equal, found, sampled(plain, masks())))


@pytest.mark.parametrize(("planner", "eta"), [("self", 1), ("self", 3.5), ("self", 0.2)])
def test_each_step_leaves_the_masks_of_the_schedule_whatever_it_masks_again(planner: str, eta: float) -> None:
    x_1 = masks()
    seen = sampled(SAMPLERS.build({"type": "p2", "planner": planner, "eta": eta, "steps": 8}), x_1)
    n_open = (x_1 == MASK).sum(1)
    for step, x_s in enumerate(seen):
        assert torch.equal((x_s == MASK).sum(1), Linear().masked_counts(n_open, 8, "masked")[step])


def test_more_weight_masks_more_tokens_again() -> None:
    def n_again(eta: float) -> int:
        seen = sampled(SAMPLERS.build({"type": "p2", "eta": eta, "steps": 12}), masks(48))
        return sum(int(((b == MASK) & (a != MASK)).sum()) for a, b in pairwise(seen))

    counts = [n_again(eta) for eta in (0, 1, 4)]
    assert counts[0] == 0 < counts[1] < counts[2]


def test_a_token_that_became_unlikely_is_drawn_again() -> None:
    def changing(x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        """Token 0 everywhere, until two tokens are visible; then token 1, and 0 is next to impossible."""
        likely = ((x_t != MASK).sum(1) >= 2).long()[:, None].expand_as(x_t)[where]
        return Categorical(6.0 * torch.eye(2)[likely], where)

    x_1 = torch.full((1, 6), MASK)
    rng = Rng.per_sample([0])
    sampler = MaskedSampler(Confidence(), Even(), Planned(1.0), steps=3, temperature=0)
    assert sampler(changing, x_1, rng, mask_id=MASK).tolist() == [[1] * 6]
    plain = MaskedSampler(Confidence(), Even(), steps=3, temperature=0)
    assert plain(changing, x_1, rng, mask_id=MASK).tolist()[0].count(0) == 2


def test_a_negative_or_infinite_weight_is_refused() -> None:
    for eta in (-0.1, float("inf")):
        with pytest.raises(ValueError, match="eta must be"):
            Planned(eta)
