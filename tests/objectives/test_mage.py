"""Laws of MAGE's training: masked tokens are dropped, mask ratios a batch or a sample, the contrastive term."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.objectives import MaskedTokens, draw_times
from maskgen.objectives.contrastive import Contrastive, info_nce
from maskgen.objectives.masked import drop_masked
from maskgen.processes import Absorbing
from maskgen.recipes.budget import learning_rate
from maskgen.recipes.load import load_recipe
from maskgen.schedules import SCHEDULES, Fixed, Schedule, TruncatedNormal
from tests.toys import pick

V = 5


class Watch:
    """A denoiser that predicts dropped tokens, with given logits (B, L, V); remembers what it was asked."""

    traits = NetworkTraits(drops_masked=True)

    def __init__(self, logits: Tensor, vectors: Tensor | None = None) -> None:
        self.logits, self.vectors, self.view = logits, vectors, None

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, subset: Any, where: Any, view: Any = None
    ) -> Categorical:
        self.x_t, self.t, self.subset, self.where, self.view = x_t, t, subset, where, view
        return Categorical(pick(self.logits, where).logits, where, vectors=self.vectors)


def data(n: int, length: int) -> Batch:
    return Batch((Rng.stream("data").uniform((n, length)) * V).long())


def objective(schedule: Schedule = TruncatedNormal(), **more: Any) -> MaskedTokens:
    return MaskedTokens(Absorbing(V, schedule), **more)


def test_dropped_tokens_are_masked_ones_and_count_in_the_loss() -> None:
    batch, watch = data(64, 49), Watch(torch.randn(64, 49, V))
    loss = objective()(watch, batch, Rng.stream(0), keep_ratio=0.5)
    is_masked, is_kept = watch.x_t == V, watch.subset.is_kept()
    assert (~is_kept).sum(1).eq(25).all()  # ceil(49 / 2)
    assert is_masked[~is_kept].all()
    assert (is_masked & is_kept).any()
    assert torch.equal(watch.where, is_masked)
    assert loss.value.item() == pytest.approx(F.cross_entropy(watch.logits[is_masked], batch.x_0[is_masked]).item())


def test_those_that_are_masked_first_are_dropped() -> None:
    noise = Rng.stream("noise").uniform((8, 12))
    process = Absorbing(V, Fixed(0.75))
    x_t = process.corrupt(data(8, 12).x_0, torch.ones(8), noise)
    is_dropped = ~drop_masked(x_t == V, noise, 0.5).is_kept()
    earlier = Absorbing(V, Fixed(0.5)).corrupt(data(8, 12).x_0, torch.ones(8), noise)
    assert torch.equal(is_dropped, earlier == V)


def test_the_mask_is_the_same_whatever_is_dropped() -> None:
    watch = Watch(torch.zeros(8, 16, V))
    objective()(watch, data(8, 16), Rng.stream(0))
    whole = watch.x_t
    assert watch.subset is None
    objective()(watch, data(8, 16), Rng.stream(0), keep_ratio=0.5)
    assert torch.equal(watch.x_t, whole)


@pytest.mark.parametrize("keep_ratio", [0.01, 0.3, 0.5, 0.7, 0.99])
def test_a_row_with_few_masked_tokens_keeps_more_and_none_drops_a_visible_one(keep_ratio: float) -> None:
    n_masked = torch.arange(11)
    noise = Rng.stream("noise").uniform((11, 10))
    is_masked = noise.argsort(1).argsort(1) < n_masked[:, None]
    subset = drop_masked(is_masked, noise, keep_ratio)
    n_drop = {0.01: 9, 0.3: 7, 0.5: 5, 0.7: 3, 0.99: 1}[keep_ratio]  # ceil(10 (1 - keep)); one is kept always
    is_dropped = ~subset.is_kept()
    assert torch.equal(is_dropped.sum(1), n_masked.clamp(max=n_drop))
    assert not (is_dropped & ~is_masked).any()


def test_published_counts_are_128_of_256_dropped_and_at_least_as_many_masked() -> None:
    watch = Watch(torch.zeros(64, 256, V))
    objective()(watch, data(64, 256), Rng.stream(0), keep_ratio=0.5)
    assert watch.subset.keep.shape == (64, 128)
    assert watch.subset.valid is None
    n_masked = (watch.x_t == V).sum(1)
    assert 128 <= n_masked.min() < 140 < 240 < n_masked.max() <= 256


def test_a_network_that_does_not_predict_dropped_tokens_has_any_of_them_dropped() -> None:
    watch = Watch(torch.zeros(8, 16, V))
    watch.traits = NetworkTraits()
    objective()(watch, data(8, 16), Rng.stream(0), keep_ratio=0.25)
    assert torch.equal(watch.where, (watch.x_t == V) & watch.subset.is_kept())
    assert ((watch.x_t != V) & ~watch.subset.is_kept()).any()


def test_one_ratio_a_batch_is_the_same_in_all_rows_and_processes_and_of_the_schedules_distribution() -> None:
    times = [draw_times(4, Rng.stream(seed), torch.device("cpu"), "batch") for seed in range(4000)]
    assert all((t == t[0]).all() for t in times)
    first = torch.stack([t[0] for t in times])
    assert first.min() > 0
    ratios = TruncatedNormal().mask_ratio(first)
    assert ratios.mean().item() == pytest.approx(0.6936, abs=0.006)
    assert ratios.median().item() == pytest.approx(0.67567, abs=0.01)
    assert ratios.std().item() == pytest.approx(0.12859, abs=0.004)
    shares = [
        draw_times(4, Rng.rows(0, first=4 * rank, count=4, total=8), torch.device("cpu"), "batch") for rank in (0, 1)
    ]
    assert torch.equal(*shares)


def test_a_ratio_a_sample_differs_over_the_rows_and_one_a_batch_does_not() -> None:
    counts = {}
    for per in ("sample", "batch"):
        watch = Watch(torch.zeros(16, 256, V))
        objective(ratio_per=per)(watch, data(16, 256), Rng.stream(0))
        counts[per] = len((watch.x_t == V).sum(1).unique())
    assert counts["batch"] == 1 < 10 < counts["sample"]


@pytest.mark.parametrize("ratio", [0.55, 0.75])
def test_a_fixed_ratio_masks_equally_many_in_every_row(ratio: float) -> None:
    watch = Watch(torch.zeros(16, 49, V))
    objective(SCHEDULES.build({"type": "fixed", "ratio": ratio}))(watch, data(16, 49), Rng.stream(0), keep_ratio=0.5)
    assert (watch.x_t == V).sum(1).eq(round(49 * ratio)).all()
    assert watch.subset.keep.shape == (16, 24)


def test_a_smoothed_target_has_the_published_floor() -> None:
    on, off = 0.90009765625, 9.765625e-5
    floor = -(on * math.log(on) + 1023 * off * math.log(off))
    assert floor == pytest.approx(1.01724, abs=1e-5)
    logits = torch.full((1, 4, 1024), math.log(off))
    logits[..., 0] = math.log(on)
    task = MaskedTokens(Absorbing(1024, Fixed(1.0)), label_smoothing=0.1)
    loss = task(Watch(logits), Batch(torch.zeros(1, 4, dtype=torch.long)), Rng.stream(0))
    assert loss.value.item() == pytest.approx(floor, abs=1e-4)


def test_the_rate_of_the_published_recipe_is_as_published() -> None:
    train = load_recipe("image/imagenet-mage-b").train
    per_epoch = train.steps / 1600
    rates = [learning_rate(round(epoch * per_epoch) - 1, train) for epoch in (20, 40, 820, 1600)]
    assert rates == pytest.approx([1.2e-3, 2.4e-3, 1.2e-3, 0], abs=1e-7)


def test_equal_vectors_cost_the_log_of_how_many_others_there_are() -> None:
    for n in (1, 2, 16):
        assert info_nce(torch.ones(2, n, 3), 0.2).item() == pytest.approx(math.log(2 * n - 1), abs=1e-6)


def test_a_worked_example_of_two_images() -> None:
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, 5.0]]])  # only directions matter
    # cosines: a0 a1 = 0, a0 b0 = .6, a0 b1 = 0, a1 b0 = .8, a1 b1 = 1, b0 b1 = .8
    e = [math.exp(c / 0.5) for c in (0.0, 0.6, 0.8, 1.0)]
    chances = [
        e[1] / (e[1] + 2 * e[0]),  # a0 -> b0
        e[3] / (e[3] + e[0] + e[2]),  # a1 -> b1
        e[1] / (e[1] + 2 * e[2]),  # b0 -> a0
        e[3] / (e[3] + e[0] + e[2]),  # b1 -> a1
    ]
    expected = -sum(map(math.log, chances)) / 4
    assert info_nce(vectors, 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_the_term_does_not_know_which_view_is_first_or_how_images_are_ordered() -> None:
    vectors = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    value = info_nce(vectors, 0.2)
    assert torch.allclose(info_nce(vectors.flip(0), 0.2), value)
    assert torch.allclose(info_nce(vectors[:, torch.randperm(6)], 0.2), value)
    assert not torch.allclose(info_nce(torch.stack([vectors[0], vectors[1].roll(1, 0)]), 0.2), value)


@pytest.mark.learned
def test_the_term_falls_as_pairs_are_brought_together() -> None:
    vectors = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    together = [torch.stack([vectors[0], (1 - w) * vectors[1] + w * vectors[0]]) for w in (0.0, 0.5, 1.0)]
    values = [info_nce(pair, 0.2).item() for pair in together]
    assert values[0] > values[1] > values[2]


def test_the_term_is_added_with_its_weight_where_there_is_another_view() -> None:
    batch, logits = data(4, 16), torch.randn(4, 16, V)
    vectors = torch.randn(2, 4, 3)
    task = objective(contrastive=Contrastive(weight=0.3, temperature=0.5))
    plain = objective()(Watch(logits), batch, Rng.stream(0), keep_ratio=0.5)
    watch = Watch(logits, vectors)
    both = task(watch, Batch(batch.x_0, view=batch.x_0.flip(0)), Rng.stream(0), keep_ratio=0.5)
    term = info_nce(vectors, 0.5)
    assert torch.allclose(both.value, plain.value + 0.3 * term)
    assert torch.allclose(both.logs["contrastive"], torch.stack([term, torch.tensor(1.0)]))
    assert torch.allclose(both.logs["loss"][0], both.value)
    alone = Watch(logits)
    assert torch.equal(task(alone, batch, Rng.stream(0), keep_ratio=0.5).value, plain.value)
    assert alone.view is None


def test_another_view_is_masked_and_dropped_by_itself() -> None:
    x_0, watch = data(16, 16).x_0, Watch(torch.zeros(16, 16, V), torch.ones(2, 16, 3))
    objective(contrastive=Contrastive())(watch, Batch(x_0, view=x_0), Rng.stream(0), keep_ratio=0.5)
    assert watch.view is not None
    x_t, kept = watch.view
    assert isinstance(kept, TokenSubset)
    assert torch.equal(x_t[x_t != V], x_0[x_t != V])
    assert (x_t[~kept.is_kept()] == V).all()
    assert not torch.equal(x_t == V, watch.x_t == V)


@pytest.mark.parametrize("change", ["objective.contrastive={}", "model.projection=8", "train.views={}"])
def test_a_recipe_with_a_part_of_the_contrastive_term_is_refused_with_what_is_missing(change: str) -> None:
    with pytest.raises(ValueError, match=rf"{change.split('=')[0]}.*: needs .* and .*; give all three, or none"):
        load_recipe("image/fashion-mage", [change])


def test_views_that_know_their_class_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"model\.condition: token gives both views of an image their class"):
        load_recipe("image/fashion-mage-c", ["model.condition=token"])


def test_a_term_with_an_impossible_or_unknown_key_is_refused_with_the_keys_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"objective.contrastive.weigth: unknown key; .*accepted here: temperature, weigh"
    ):
        load_recipe("image/fashion-mage-c", ["objective.contrastive={weigth: 1}"])
    with pytest.raises(ValueError, match=r"contrastive.temperature: input should be greater than 0, got 0"):
        load_recipe("image/fashion-mage-c", ["objective.contrastive.temperature=0"])


def test_an_unconditional_recipe_cannot_be_guided() -> None:
    with pytest.raises(ValueError, match=r"guidance.scale: model.condition none has no classes .* use 1, got 2"):
        load_recipe("image/fashion-mage", ["guidance.scale=2"])
    load_recipe("image/fashion-mage", ["guidance.scale=2", "model.condition=token", "objective.label_dropout=0.1"])
