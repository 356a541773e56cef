"""Laws of M2T: what a group may depend on, limits, caches, exact likelihood."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from maskgen.core.groups import GroupPlan
from maskgen.core.predictions import NULL, Condition
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.bounds import exact_nll
from maskgen.evaluation.metrics.likelihood import is_exact
from maskgen.models.m2t import M2T
from maskgen.samplers import MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.layout import Groups
from maskgen.samplers.masked.order import Random


def network(vocab_size: int = 5, n_classes: int = 0, **keys: object) -> M2T:
    torch.manual_seed(0)
    sizes: dict[str, object] = {"grid": (4, 4), "n_groups": 5, "width": 16, "depth": 2, "heads": 2}
    made = M2T(vocab_size, n_classes=n_classes, **(sizes | keys))  # type: ignore[arg-type]
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "keys", [{}, {"order": "halton", "alpha": 1.0}, {"order": "raster", "n_groups": 16}, {"n_groups": 1}]
)
def test_a_group_depends_on_exactly_the_groups_before_it(keys: dict[str, object]) -> None:
    model = network(**keys)
    index = model.plan.index
    x = torch.randint(0, 5, (1, 16), generator=torch.Generator().manual_seed(1))
    before = model(x, torch.zeros(1)).logits
    for place in range(16):
        changed = x.clone()
        changed[0, place] = (x[0, place] + 1) % 5
        moved = (model(changed, torch.zeros(1)).logits - before).abs().amax(-1)[0] > 1e-6
        assert torch.equal(moved, index > index[place])


@pytest.mark.parametrize("n_classes", [0, 3])
def test_the_cache_is_exact(n_classes: int) -> None:
    model = network(n_classes=n_classes)
    x = torch.randint(0, 5, (3, 16), generator=torch.Generator().manual_seed(1))
    cond = Condition(torch.tensor([0, 2, NULL])) if n_classes else None
    whole, cached = model(x, torch.zeros(3), cond).logits, model.cached()
    for group in (0, 1, 2, 1, 3, 4):  # one goes back: the cache is cut
        where = (model.plan.index == group).expand(3, -1).clone()
        where[1] &= torch.arange(16) % 2 == 0
        assert torch.allclose(cached(x, torch.zeros(3), cond, where=where).logits, whole[where], atol=1e-5)


def test_a_cache_of_other_classes_is_dropped() -> None:
    model = network(n_classes=3)
    x = torch.randint(0, 5, (2, 16), generator=torch.Generator().manual_seed(1))
    cached, where = model.cached(), (model.plan.index == 3).expand(2, -1)
    for labels in ([0, 1], [0, 1], [2, 1]):
        cond = Condition(torch.tensor(labels))
        expected = model(x, torch.zeros(2), cond, where=where).logits
        assert torch.allclose(cached(x, torch.zeros(2), cond, where=where).logits, expected, atol=1e-5)


def test_a_row_that_is_not_asked_about_is_left_out_of_the_answer_only() -> None:
    model = network()
    x = torch.randint(0, 5, (3, 16), generator=torch.Generator().manual_seed(1))
    cached = model.cached()
    for group, rows in ((1, [1]), (2, [0, 2]), (3, [0, 1, 2])):
        where = torch.zeros(3, 16, dtype=torch.bool)
        where[rows] = model.plan.index == group
        expected = model(x, torch.zeros(3), where=where).logits
        assert torch.allclose(cached(x, torch.zeros(3), where=where).logits, expected, atol=1e-5)


def test_probabilities_of_all_rows_sum_to_one() -> None:
    model = network(2, grid=(2, 3), n_groups=3, alpha=1.5)
    assert is_exact(model)
    rows = torch.tensor(list(product((0, 1), repeat=6)))
    assert float((-exact_nll(model, rows)).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_samples_follow_the_exact_law() -> None:
    model = network(2, grid=(2, 2), n_groups=2, alpha=1.0)
    n, plan = 4000, GroupPlan((2, 2), "qlds", 2, 1.0)
    sampler = MaskedSampler(Random(), layout=Groups(plan), steps=2)
    denoise = Guidance().bind(model.cached(), None, mask_id=2)
    x = sampler(denoise, torch.full((n, 4), 2), Rng.per_sample(range(n)), mask_id=2, grid=(2, 2))
    rows = torch.tensor(list(product((0, 1), repeat=4)))
    law = (-exact_nll(model, rows)).exp()
    found = torch.bincount(x @ torch.tensor([8, 4, 2, 1]), minlength=16) / n
    assert ((found - law).abs() <= 4 * (law * (1 - law) / n).sqrt() + 1e-9).all()


def test_guidance_goes_through_the_cache() -> None:
    model = network(n_classes=3)
    cond = Condition(torch.tensor([0, 1]))
    x_1 = torch.full((2, 16), 5)
    sampler = MaskedSampler(Random(), layout=Groups(model.plan), steps=5)
    samples = [
        sampler(Guidance(3.0).bind(made, cond, mask_id=5), x_1, Rng.per_sample([4, 5]), mask_id=5, grid=(4, 4))
        for made in (model, model.cached())
    ]
    assert torch.equal(*samples)
