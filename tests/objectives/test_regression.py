"""Laws of the squared error on masked tokens, and of denoising them beside clean ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import NULL, Batch, Condition, Field, Point
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.objectives import Denoising, MaskedDenoising, MaskedRegression
from maskgen.objectives.regression import some_of
from maskgen.objectives.targets.pixels import Pixels, normalised
from maskgen.processes import Absorbing, Gaussian, is_mask
from maskgen.schedules import Betas, Fixed, Linear, LogNormal, Rectified

N, LENGTH, WIDTH = 4, 16, 6
x_0 = Rng.stream("x").normal((N, LENGTH, WIDTH))
MAE = Absorbing(0, Fixed(0.75))
STRAIGHT = Gaussian(Rectified(), "x_0")


class Guess:
    """Says the same values (B, L, D) of whatever it is targets; remembers what it was given."""

    def __init__(self, values: Tensor, training: bool = True) -> None:
        self.values, self.training = values, training

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any, targets: Any = None) -> Any:
        self.x_t, self.t, self.cond, self.subset, self.targets = x_t, t, cond, subset, targets
        if targets is None:
            return Field(subset.rest().gather(self.values), subset=subset.rest())
        return Point(targets.pack(targets.gather(self.values)), targets.is_kept())


@pytest.mark.parametrize("process", [MAE, Absorbing(0, Linear(), "bernoulli"), Absorbing(0, Linear())])
def test_the_loss_is_the_mean_squared_error_of_masked_tokens_and_of_no_others(process: Absorbing) -> None:
    guess = Guess(Rng.stream("guess").normal(x_0.shape))
    loss = MaskedRegression(process, target=Pixels())(guess, Batch(x_0), Rng.stream(0))
    is_masked = is_mask(guess.x_t, 0)
    expected = (guess.values - x_0)[is_masked].square().mean()
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(guess.targets.is_kept(), is_masked)
    assert torch.equal(guess.subset.is_kept(), ~is_masked)
    elsewhere = guess.values + 9 * ~is_masked[..., None]
    again = MaskedRegression(process, target=Pixels())(Guess(elsewhere), Batch(x_0), Rng.stream(0))
    assert torch.equal(again.value, loss.value)


def test_exactly_the_ratio_is_masked_in_every_row() -> None:
    guess = Guess(torch.zeros_like(x_0))
    MaskedRegression(MAE)(guess, Batch(x_0), Rng.stream(0))
    assert is_mask(guess.x_t, 0).sum(1).tolist() == [12] * N
    assert guess.subset.valid is None  # nothing was counted


def test_who_knows_the_normalised_tokens_has_no_loss() -> None:
    loss = MaskedRegression(MAE)(Guess(normalised(x_0)), Batch(x_0), Rng.stream(0))
    assert float(loss.value) == 0
    assert float(MaskedRegression(MAE)(Guess(x_0), Batch(x_0), Rng.stream(0)).value) > 0


def test_normalised_tokens_have_mean_0_and_unbiased_variance_1_and_flat_ones_are_0() -> None:
    found = normalised(3 * x_0 + 5)
    assert torch.allclose(found.mean(-1), torch.zeros(N, LENGTH), atol=1e-5)
    assert torch.allclose(found.var(-1), torch.ones(N, LENGTH), atol=1e-4)
    assert not normalised(torch.ones(1, 1, WIDTH)).any()


def test_knowing_nothing_of_normalised_tokens_costs_their_biased_variance() -> None:
    loss = MaskedRegression(MAE)(Guess(torch.zeros_like(x_0)), Batch(x_0), Rng.stream(0))
    assert float(loss.value) == pytest.approx((WIDTH - 1) / WIDTH, rel=1e-4)


@pytest.mark.parametrize("process", [MAE, Absorbing(0, Linear(), "bernoulli")])
def test_a_training_step_decodes_a_share_of_the_masked_tokens_and_a_validation_all(process: Absorbing) -> None:
    objective = MaskedRegression(process, target=Pixels(), decode_ratio=1 / 3)
    for training in (True, False):
        guess = Guess(torch.zeros_like(x_0), training)
        loss = objective(guess, Batch(x_0), Rng.stream(0))
        is_masked, targets = is_mask(guess.x_t, 0), guess.targets.is_kept()
        assert not (targets & ~is_masked).any()
        counts = is_masked.sum(1).double()
        wanted = (counts / 3).round().clamp(min=1).minimum(counts) if training else counts
        assert targets.sum(1).tolist() == wanted.tolist()
        assert float(loss.value) == pytest.approx(float(x_0[targets].square().mean()), rel=1e-5)


def test_every_masked_token_has_the_same_chance_to_be_decoded() -> None:
    masked = TokenSubset.of(torch.tensor([[True] * 3 + [False]] * 3000))
    share = some_of(masked, 1 / 3, Rng.stream(0)).is_kept().float().mean(0)
    assert share.tolist() == pytest.approx([1 / 3] * 3 + [0], abs=0.03)


def test_logs_are_sums_with_their_counts() -> None:
    loss = MaskedRegression(MAE)(Guess(torch.zeros_like(x_0)), Batch(x_0), Rng.stream(0))
    total, n = loss.logs["squared_error"].tolist()
    assert n == 12 * N
    assert total / n == pytest.approx(float(loss.value))


def test_visible_tokens_are_the_condition_and_only_masked_ones_have_a_loss() -> None:
    guess = Guess(Rng.stream("guess").normal(x_0.shape))
    cond = Condition(torch.arange(N))
    loss = MaskedDenoising(STRAIGHT)(guess, Batch(x_0, cond), Rng.stream(0))
    visible = guess.cond.visible
    is_masked = is_mask(visible, 0)
    assert torch.equal(guess.cond.labels, cond.labels)
    assert is_masked.sum(1).tolist() == [12] * N
    assert torch.equal(visible[~is_masked], x_0[~is_masked])
    expected = (guess.values - x_0)[is_masked].square().mean()
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-5)


def test_at_maximal_noise_the_task_is_that_of_mae() -> None:
    """The same masks and targets, an input that says nothing of x_0, and so the same loss for the same answer."""
    noise = STRAIGHT.draw_noise(x_0, Rng.stream("noise"))
    end = torch.ones(N, dtype=torch.float64)
    assert torch.equal(STRAIGHT.corrupt(x_0, end, noise), STRAIGHT.corrupt(-3 * x_0, end, noise))
    values = Rng.stream("guess").normal(x_0.shape)
    denoises, regresses = Guess(values), Guess(values)
    first = MaskedDenoising(Gaussian(Rectified(), "x_0", steps=1))(denoises, Batch(x_0), Rng.stream(0))
    second = MaskedRegression(MAE, target=Pixels())(regresses, Batch(x_0), Rng.stream(0))
    assert torch.allclose(denoises.t, torch.zeros(N), atol=1e-6)  # the last of T = 1 steps, counted from 0
    assert torch.equal(denoises.subset.keep, regresses.subset.keep)
    assert float(first.value) == pytest.approx(float(second.value), rel=1e-6)


def test_the_weight_is_of_the_noise_level() -> None:
    class Always:
        def __call__(self, snr: Tensor, c_out: Tensor) -> Tensor:
            return torch.full_like(snr, 2.0)

    plain, doubled = (
        MaskedDenoising(STRAIGHT, **more)(Guess(torch.zeros_like(x_0)), Batch(x_0), Rng.stream(0)).value
        for more in ({}, {"weight": Always()})
    )
    assert float(doubled) == pytest.approx(2 * float(plain))


@pytest.mark.parametrize("process", [Gaussian(LogNormal(), "x_0", "exploding"), Gaussian(Betas(), "x_0", steps=1000)])
def test_denoising_is_finite_under_every_schedule(process: Gaussian) -> None:
    loss = MaskedDenoising(process)(Guess(torch.zeros_like(x_0)), Batch(x_0), Rng.stream(0))
    assert loss.value.isfinite()


def test_what_is_visible_belongs_to_the_null_condition_too() -> None:
    cond = Condition(torch.arange(N), visible=x_0)
    assert torch.equal(cond.null().labels, torch.full((N,), NULL))
    assert cond.null().visible is x_0
    assert cond.drop(1.0, Rng.stream(0)).visible is x_0
    both = cond.join(cond.null())
    assert both.visible is not None
    assert torch.equal(both.visible[N:], x_0)
    rows = cond.rows(torch.tensor([2, 0])).visible
    assert rows is not None
    assert torch.equal(rows, x_0[[2, 0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskedRegression(Absorbing(5)), "needs process absorbing and continuous tokens"),
        (lambda: MaskedRegression(STRAIGHT), "needs process absorbing"),
        (lambda: MaskedRegression(MAE, decode_ratio=0), r"decode_ratio must be in \(0, 1\], got 0"),
        (lambda: MaskedDenoising(MAE), "needs process gaussian with target x_0"),
        (lambda: MaskedDenoising(Gaussian(target="v")), "needs process gaussian with target x_0"),
        (lambda: MaskedDenoising(STRAIGHT, mask_ratio=0), r"ratio must be in \(0, 1\]"),
        (lambda: MaskedRegression(MAE)(None, Batch(x_0), Rng.stream(0), keep_ratio=0.5), "use keep_ratio 1"),
        (lambda: MaskedDenoising(STRAIGHT)(None, Batch(x_0), Rng.stream(0), keep_ratio=0.5), "use keep_ratio 1"),
    ],
)
def test_impossible_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_times_of_all_gaussian_objectives_are_drawn_alike() -> None:
    process = Gaussian(Betas(), "x_0", steps=1000)
    one, other = (
        built._times(8, Rng.stream(0), torch.device("cpu")) for built in (Denoising(process), MaskedDenoising(process))
    )
    assert torch.equal(one, other)
