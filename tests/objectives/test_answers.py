"""Answers after prompts, complementary masks, CAP and rows of random length."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical
from maskgen.core.rng import Rng
from maskgen.objectives import MaskedTokens
from maskgen.processes import Absorbing
from maskgen.schedules import Cosine, Linear, Schedule

V, L = 5, 8
X = (Rng.stream("x").uniform((6, L)) * V).long()
IS_ANSWER = torch.arange(L) >= torch.tensor([0, 1, 3, 5, 6, 7])[:, None]
BATCH = Batch(X, is_answer=IS_ANSWER)


def objective(schedule: Schedule = Linear(), weight: Any = "elbo", **more: Any) -> MaskedTokens:
    return MaskedTokens(Absorbing(V, schedule, "bernoulli"), weight, label_dropout=0.0, **more)


class Watch:
    """Uniform predictions, or given logits (V,); remembers its inputs."""

    def __init__(self, logits: Tensor | None = None) -> None:
        self.logits = torch.zeros(V) if logits is None else logits
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any, where: Tensor) -> Categorical:
        self.rows.append((x_t, t, where))
        return Categorical(self.logits.expand(int(where.sum()), V), where)


def mean_loss(one: MaskedTokens, batch: Batch, n: int = 60) -> tuple[float, float]:
    """Mean and standard error of a uniform predictor's loss over n batches of 5 times these rows."""
    assert batch.is_answer is not None
    many = Batch(batch.x_0.repeat(5, 1), is_answer=batch.is_answer.repeat(5, 1))
    values = torch.stack([one(Watch(), many, Rng.stream("draw", i)).value for i in range(n)])
    return float(values.mean()), float(values.std() / math.sqrt(n))


@pytest.mark.parametrize("complementary", [False, True])
def test_prompts_are_never_masked_and_never_predicted(complementary: bool) -> None:
    watch, one = Watch(), objective(complementary=complementary)
    for index in range(100):
        one(watch, BATCH, Rng.stream("draw", index))
    n_copies = 2 if complementary else 1
    is_prompt, x = ~IS_ANSWER.repeat(n_copies, 1), X.repeat(n_copies, 1)
    n_masked = sum(int((x_t == V).sum()) for x_t, _, _ in watch.rows)
    assert sum(int((x_t == V)[is_prompt].sum() + where[is_prompt].sum()) for x_t, _, where in watch.rows) == 0
    assert all(torch.equal(x_t[is_prompt], x[is_prompt]) for x_t, _, _ in watch.rows)
    assert n_masked > 500


def test_the_loss_of_a_row_is_divided_by_the_length_of_its_answer() -> None:
    rng = Rng.stream("draw", 0)
    value = float(objective()(watch := Watch(), BATCH, rng).value)
    _, t, where = watch.rows[0]
    expected = (where.sum(1) / t.double() / IS_ANSWER.sum(1)).mean() * math.log(V)
    assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
@pytest.mark.parametrize("complementary", [False, True])
def test_the_bound_of_uniform_predictions_is_the_logarithm_of_the_vocabulary(
    schedule: Schedule, complementary: bool
) -> None:
    one = objective(schedule, complementary=complementary, sampling_eps=0.0)
    mean, error = mean_loss(one, BATCH)
    assert abs(mean - math.log(V)) < 4 * error


@pytest.mark.parametrize("weight", ["elbo", "uniform"])
def test_of_a_row_and_its_complement_each_answer_token_is_predicted_once(weight: Any) -> None:
    watch = Watch()
    objective(Cosine(), weight, complementary=True)(watch, BATCH, Rng.stream("draw", 1))
    x_t, t, where = watch.rows[0]
    first, second = where.chunk(2)
    assert torch.equal(first ^ second, IS_ANSWER)
    assert not (first & second).any()
    ratio = Cosine().mask_ratio(t.double())
    assert torch.allclose(ratio[:6] + ratio[6:], torch.ones(6, dtype=torch.float64), atol=1e-6)
    assert torch.equal(x_t == V, where)


def test_a_model_in_evaluation_mode_sees_each_row_once_and_pays_no_cap() -> None:
    class Evaluated(Watch):
        training = False

    watch = Evaluated(torch.tensor([2.0, 0, 0, 0, 0]))
    plain = objective()(watch, BATCH, Rng.stream("draw", 2))
    other = objective(complementary=True, confidence=1.0)(watch, BATCH, Rng.stream("draw", 2))
    assert torch.equal(plain.value, other.value)
    assert len(watch.rows[1][0]) == 6


def test_cap_is_the_mean_entropy_where_the_likeliest_token_is_right() -> None:
    logits = torch.tensor([2.0, 0, 0, 0, 0], requires_grad=True)
    batch = Batch(X % 2, is_answer=IS_ANSWER)
    plain = objective()(Watch(logits), batch, Rng.stream("draw", 3)).value
    with_cap = objective(confidence=0.5)(Watch(logits), batch, Rng.stream("draw", 3)).value
    entropy = float(Categorical(logits.detach()[None]).entropy())
    assert float((with_cap - plain).detach()) == pytest.approx(0.5 * entropy, rel=1e-5)
    (gradient,) = torch.autograd.grad(with_cap - plain, logits)
    assert gradient[0] < 0  # a step against it makes the likeliest token likelier


def test_cap_of_predictions_that_are_all_wrong_is_zero() -> None:
    batch = Batch(X.clamp(min=1), is_answer=IS_ANSWER)
    found = objective(confidence=1.0)(Watch(torch.tensor([2.0, 0, 0, 0, 0])), batch, Rng.stream("draw", 4))
    assert float(found.logs["entropy_where_right"][0]) == 0


class Packed(Watch):
    """Remembers the documents too."""

    def __init__(self) -> None:
        super().__init__()
        self.documents: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, *more: Any, documents: Tensor, **options: Any) -> Categorical:
        self.documents.append(documents)
        return super().__call__(x_t, t, *more, **options)


def test_a_share_of_the_rows_has_any_length_and_nothing_after_it_is_predicted() -> None:
    watch, one = Packed(), objective(random_length=0.5)
    for index in range(100):
        one(watch, Batch(X), Rng.stream("draw", index))
    documents, where = torch.cat(watch.documents), torch.cat([where for _, _, where in watch.rows])
    lengths = (documents == 0).sum(1)
    assert torch.equal(documents == 0, torch.arange(L) < lengths[:, None])
    assert not where[documents != 0].any()
    assert set(lengths.tolist()) == set(range(1, L + 1))
    assert abs(float((lengths == L).double().mean()) - (0.5 + 0.5 / L)) < 0.08


def test_the_loss_of_cut_rows_is_a_mean_over_what_is_left() -> None:
    one = objective(random_length=0.9)
    values = torch.stack([one(Packed(), Batch(X), Rng.stream("draw", index)).value for index in range(300)])
    assert abs(float(values.mean()) - math.log(V)) < 4 * float(values.std()) / math.sqrt(300)


def test_a_row_has_its_length_in_whatever_process_it_is() -> None:
    def cuts(first: int, count: int) -> Tensor:
        watch, rng = Packed(), Rng.rows("draw", 0, first=first, count=count, total=6)
        objective(random_length=0.9)(watch, Batch(X[first : first + count]), rng)
        return watch.documents[0]

    assert torch.equal(torch.cat([cuts(0, 3), cuts(3, 3)]), cuts(0, 6))


def test_rows_that_are_packed_already_keep_their_documents() -> None:
    packed = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]).expand(6, L)
    watch = Packed()
    objective(random_length=0.9)(watch, Batch(X, documents=packed), Rng.stream("draw", 5))
    found = watch.documents[0]
    assert torch.equal(found[found >= 0], packed[found >= 0])
