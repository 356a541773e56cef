"""Laws of the training objectives."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import NULL, Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.objectives import (
    OBJECTIVES,
    Classification,
    MaskedTokens,
    Objective,
    Reconstruction,
    draw_times,
    shift_images,
    traits_of_objective,
)
from maskgen.processes import Absorbing
from maskgen.schedules import SCHEDULES, Cosine, Fixed, Linear
from tests.toys import constant, pick

V = 5


def data(n: int, length: int) -> Batch:
    return Batch((Rng.stream("data").uniform((n, length)) * V).long())


def objective(weight: Any = "uniform", count: Any = "bernoulli", schedule: Any = Linear(), **more: Any) -> MaskedTokens:
    return MaskedTokens(Absorbing(V, schedule, count), weight, **more)


class Watch:
    """A denoiser with given logits (B, L, V) that remembers what it was asked."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, subset: Any, where: Any
    ) -> Categorical:
        self.x_t, self.t, self.cond, self.subset, self.where = x_t, t, cond, subset, where
        return pick(self.logits, where)


def test_every_objective_declares_what_it_is_for() -> None:
    for name in OBJECTIVES.names():
        traits = traits_of_objective(name)
        needs_process = "process" in inspect.signature(OBJECTIVES.get(name)).parameters
        assert needs_process == (traits.process != "none"), name
        assert issubclass(OBJECTIVES.get(name), Objective), name  # type: ignore[arg-type]


def test_times_lie_one_in_each_stratum() -> None:
    t = draw_times(64, Rng.stream(0), torch.device("cpu"))
    assert t.dtype == torch.float64
    assert torch.equal((t * 64).ceil().long().sort().values, torch.arange(1, 65))
    assert not torch.equal(t, t.sort().values)


def test_a_time_of_any_row_is_uniform() -> None:
    first = torch.stack([draw_times(4, Rng.stream(k), torch.device("cpu"))[0] for k in range(2000)])
    assert first.mean().item() == pytest.approx(0.5, abs=0.02)
    assert first.var().item() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("weight", ["uniform", "elbo"])
def test_logits_at_visible_positions_change_nothing(weight: Any) -> None:
    batch, logits = data(8, 16), torch.randn(8, 16, V)
    watch = Watch(logits)
    loss = objective(weight)(watch, batch, Rng.stream(0))
    is_masked = watch.x_t == V
    assert torch.equal(watch.where, is_masked)
    again = objective(weight)(Watch(torch.where(is_masked[..., None], logits, 99.0)), batch, Rng.stream(0))
    assert torch.equal(loss.value, again.value)


def test_the_uniform_loss_is_the_mean_over_masked_tokens() -> None:
    batch = data(8, 16)
    watch = Watch(torch.randn(8, 16, V))
    loss = objective("uniform", "exact")(watch, batch, Rng.stream(0))
    expected = F.cross_entropy(watch.logits[watch.where], batch.x_0[watch.where])
    assert torch.allclose(loss.value, expected)


@pytest.mark.parametrize("vocab_size", [1024, 4096, 16385])
def test_knowing_nothing_costs_log_v_and_that_is_the_baseline(vocab_size: int) -> None:
    task = MaskedTokens(Absorbing(vocab_size))
    loss = task(constant(vocab_size), data(2, 8), Rng.stream(0))
    assert loss.value.item() == pytest.approx(math.log(vocab_size), rel=1e-5)
    expected = {1024: 6.93147, 4096: 8.31777, 16385: 9.70412}[vocab_size]
    assert task.baseline == pytest.approx(expected, abs=1e-5)


def test_a_bound_over_a_schedule_that_does_not_move_is_refused() -> None:
    with pytest.raises(ValueError, match="weight elbo of schedule fixed is 0"):
        objective("elbo", schedule=Fixed())


@pytest.mark.parametrize("name", ["truncated_normal", "exponential"])
def test_a_bound_over_a_schedule_that_leaves_tokens_uncounted_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weight elbo needs a schedule from alpha 1 to 0"):
        objective("elbo", schedule=SCHEDULES.build(name))
    objective("uniform", schedule=SCHEDULES.build(name))


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("name", sorted(set(SCHEDULES.names()) - {"fixed", "truncated_normal", "exponential"}))
def test_the_bound_of_knowing_nothing_is_log_v_whatever_the_schedule(name: str, keep_ratio: float) -> None:
    schedule = SCHEDULES.build(name)
    task = objective("elbo", schedule=schedule)
    # An odd length: half of 25 tokens is not a whole number, and the bound must not notice.
    loss = task(constant(V), data(8192, 25), Rng.stream(0), keep_ratio=keep_ratio)
    rel = 0.1 if name == "log_exp" else 0.03  # it begins thirty times as steep, and so do its weights
    assert loss.value.item() == pytest.approx(math.log(V), rel=rel)


@pytest.mark.parametrize("weight", ["uniform", "elbo"])
def test_knowing_everything_costs_nothing(weight: Any) -> None:
    batch = data(8, 16)
    loss = objective(weight)(Watch(100.0 * F.one_hot(batch.x_0, V)), batch, Rng.stream(0))
    assert loss.value.item() == pytest.approx(0, abs=1e-5)


def test_the_bound_refuses_exact_counts_under_which_it_has_no_expectation() -> None:
    with pytest.raises(ValueError, match="weight elbo needs a process with count bernoulli, got exact"):
        objective("elbo", "exact")


def test_label_smoothing_is_that_of_torch() -> None:
    batch, watch = data(8, 16), Watch(torch.randn(8, 16, V))
    loss = objective(label_smoothing=0.1)(watch, batch, Rng.stream(0))
    expected = F.cross_entropy(watch.logits[watch.where], batch.x_0[watch.where], label_smoothing=0.1)
    assert torch.allclose(loss.value, expected)


def test_label_smoothing_is_that_of_mage() -> None:
    batch = Batch(torch.zeros(1, 4, dtype=torch.long))
    logits = 20.0 * F.one_hot(batch.x_0, 1024)
    task = MaskedTokens(Absorbing(1024, Linear()), label_smoothing=0.1)
    assert task(Watch(logits), batch, Rng.stream(0)).value.item() == pytest.approx(1.99805, abs=1e-5)
    on, off = 0.90009765625, 9.765625e-5
    target = torch.full((1024,), off).scatter(0, torch.tensor(0), on)
    by_hand = -(target * F.log_softmax(logits[0, 0].float(), 0)).sum()
    assert by_hand.item() == pytest.approx(1.99805, abs=1e-5)


def test_dropped_tokens_neither_cost_nor_count() -> None:
    batch, watch = data(8, 16), Watch(torch.randn(8, 16, V))
    loss = objective()(watch, batch, Rng.stream(0), keep_ratio=0.25)
    assert isinstance(watch.subset, TokenSubset)
    assert watch.subset.keep.shape == (8, 4)
    is_counted = (watch.x_t == V) & watch.subset.is_kept()
    assert torch.equal(watch.where, is_counted)
    assert torch.allclose(loss.value, F.cross_entropy(watch.logits[is_counted], batch.x_0[is_counted]))
    assert loss.logs["cross_entropy"][1] == is_counted.sum()


def test_without_dropping_no_subset_is_drawn() -> None:
    watch = Watch(torch.zeros(8, 16, V))
    objective()(watch, data(8, 16), Rng.stream(0))
    assert watch.subset is None


def test_a_batch_without_a_masked_token_costs_zero_and_has_a_gradient() -> None:
    logits = torch.zeros(1, 1, V, requires_grad=True)
    nothing = SCHEDULES.build({"type": "polynomial", "power": 1000})
    loss = objective(schedule=nothing)(Watch(logits), data(1, 1), Rng.stream(0))
    assert loss.value.item() == 0
    loss.value.backward()


def test_labels_are_dropped_at_their_rate_and_never_without_dropout() -> None:
    batch = Batch(data(4000, 1).x_0, Condition(torch.arange(4000)))
    watch = Watch(torch.zeros(4000, 1, V))
    objective(label_dropout=0.1)(watch, batch, Rng.stream(0))
    assert watch.cond is not None
    assert (watch.cond.labels == NULL).float().mean().item() == pytest.approx(0.1, abs=0.02)
    objective(label_dropout=0.0)(watch, batch, Rng.stream(0))
    assert torch.equal(watch.cond.labels, torch.arange(4000))


def test_the_same_rng_gives_the_same_loss() -> None:
    logits = torch.randn(8, 16, V)
    losses = [objective()(Watch(logits), data(8, 16), Rng.stream(0, 1)).value for _ in range(2)]
    assert torch.equal(*losses)


def test_the_logs_are_sums_with_counts_that_add_up_over_the_quarters() -> None:
    watch = Watch(torch.randn(8, 16, V, requires_grad=True))
    logs = objective(schedule=Cosine())(watch, data(8, 16), Rng.stream(0), keep_ratio=0.5).logs
    assert all(log.shape == (2,) and not log.requires_grad for log in logs.values())
    for name in ("cross_entropy", "accuracy"):
        quarters = [log for key, log in logs.items() if key.startswith(f"{name}/masked")]
        assert len(quarters) == 4
        assert torch.allclose(torch.stack(quarters).sum(0), logs[name])


def test_quarters_are_of_the_mask_ratio_whatever_was_dropped() -> None:
    task = MaskedTokens(Absorbing(V, SCHEDULES.build({"type": "power", "power": 1000}), "exact"))  # masks nearly all
    logs = task(constant(V), data(4, 16), Rng.stream(0), keep_ratio=0.25).logs
    assert logs["cross_entropy/masked 75-100%"][1] == logs["cross_entropy"][1] > 0


@pytest.mark.parametrize("argument", ["label_smoothing", "label_dropout"])
def test_an_impossible_share_is_refused_by_name(argument: str) -> None:
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"{argument} must be in \[0, 1\), got {value}"):
            objective(**{argument: value})


def test_the_process_is_derived_and_not_a_key() -> None:
    built = OBJECTIVES.build({"type": "masked_tokens", "label_dropout": 0}, process=Absorbing(7))
    assert built.baseline == pytest.approx(math.log(7))
    assert "process" not in OBJECTIVES.arguments("masked_tokens")


def test_reconstruction_is_squared_error_plus_penalty_and_edges_count_if_asked() -> None:
    images = torch.rand(2, 1, 4, 4)
    off = images + 0.5  # a constant shift has no edges

    def model(x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=off, penalty=torch.tensor(0.25))

    for edge_weight in (0.0, 3.0):
        loss = Reconstruction(edge_weight)(model, Batch(images), Rng.stream(0))
        assert loss.value.item() == pytest.approx(0.5)
    off = images.flip(3)
    values = [Reconstruction(w)(model, Batch(images), Rng.stream(0)).value.item() for w in (0.0, 1.0, 2.0)]
    assert values[0] < values[1] < values[2]
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-4)


def test_classification_is_cross_entropy_and_needs_labels() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    batch = Batch(torch.rand(4, 1, 2, 2), Condition(labels))
    loss = Classification(label_smoothing=0.1)(lambda x: logits, batch, Rng.stream(0))
    assert torch.allclose(loss.value, F.cross_entropy(logits, labels, label_smoothing=0.1))
    with pytest.raises(ValueError, match="classification needs labels"):
        Classification()(lambda x: logits, Batch(batch.x_0), Rng.stream(0))


def test_an_image_moves_by_at_most_the_shift_and_zeros_move_in() -> None:
    images = torch.zeros(500, 1, 7, 7)
    images[:, :, 3, 3] = 1
    moved = shift_images(images, 2, Rng.stream(0))
    at = moved.flatten(1).argmax(1)
    offsets = {(int(i) // 7 - 3, int(i) % 7 - 3) for i in at}
    assert offsets == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert (moved.sum((1, 2, 3)) == 1).all()
    assert torch.equal(shift_images(images, 0, Rng.stream(0)), images)
    assert (shift_images(torch.ones(50, 1, 3, 3), 1, Rng.stream(0)).sum((1, 2, 3)) < 9).any()
