"""Laws of the denoising objective: weights, dropped tokens, gradients, the learned variance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import NULL, Batch, Condition, Field
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.dit import DiT
from maskgen.models.trunks import SWITCHES
from maskgen.objectives import OBJECTIVES, Denoising
from maskgen.objectives.targets.pixels import Normalised
from maskgen.objectives.variance import discretised_log_prob, posterior, variational_bound
from maskgen.objectives.weights import NOISE_WEIGHTS, P2, Edm, MinSnr, OnClean, OnTarget, Snr
from maskgen.processes import Gaussian
from maskgen.schedules import Betas, LogNormal, Rectified
from maskgen.tokenizers.image.patches import patchify, unpatchify
from tests.models.test_dit import SMALL, every_dropping_switch, every_switch, stir

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
EDM = Gaussian(LogNormal(), "edm", "exploding")
DDPM = Gaussian(Betas(), "eps", steps=1000)
FLOW = Gaussian(Rectified(), "flow", "straight")
batch = Batch(Rng.stream("data").normal((4, 16, 6)), Condition(torch.tensor([0, 1, 2, NULL])))


def network(masking: dict[str, Any], **more: Any) -> DiT:
    torch.manual_seed(1)
    built = DiT(6, (4, 4), 3, 32, 2, 4, masking=SWITCHES.build(masking), **more)
    stir(built)
    return built


class Fixed:
    """Answers a constant for all tokens it is asked for."""

    traits = NetworkTraits()
    training = False

    def __init__(self, value: float, variance: float | None = None) -> None:
        self.value, self.variance = value, variance

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None) -> Field:
        spread = None if self.variance is None else torch.full_like(x_t, self.variance)
        return Field(torch.full_like(x_t, self.value), spread)


def times(*steps: int) -> Tensor:
    return (torch.tensor(steps, dtype=torch.float64) + 1) / 1000


def on(target: Any, weight: Any, t: Tensor) -> Tensor:
    """The weight as it multiplies the squared error of a target."""
    process = Gaussian(Betas(), target)
    c_out = process.scalings(t).c_out
    return weight(process.snr(t), c_out) * c_out**2


def test_min_snr_has_its_right_form_for_every_target() -> None:
    t = times(0, 50, 100, 130, 300, 700)
    snr = DDPM.snr(t)
    assert torch.allclose(on("eps", MinSnr(), t), snr.clamp(max=5) / snr)
    assert torch.allclose(on("x_0", MinSnr(), t), snr.clamp(max=5))
    assert torch.allclose(on("v", MinSnr(), t), snr.clamp(max=5) / (snr + 1))


def test_min_snr_equals_the_published_weights() -> None:
    found = on("eps", MinSnr(), times(0, 100, 200, 250, 500))
    assert found.tolist() == pytest.approx(GOLDEN["min_snr5_eps_weight[0,100,200,250,500]"], rel=1e-6)
    is_one = on("eps", MinSnr(), times(*range(1000))) > 1 - 1e-9
    assert int(is_one.nonzero()[0]) == GOLDEN["min_snr5_first_t_with_weight_1"]


@pytest.mark.parametrize("gamma", [1, 0.5])
def test_p2_equals_the_published_weights(gamma: float) -> None:
    found = on("eps", P2(1, gamma), times(0, 100, 250, 500, 999))
    assert found.tolist() == pytest.approx(GOLDEN[f"p2_weight_k1_gamma{gamma}[0,100,250,500,999]"], rel=1e-6)


def test_weights_agree_where_they_must() -> None:
    t = times(10, 400, 900)
    for target in ("eps", "x_0", "v", "flow"):
        assert torch.allclose(on(target, OnTarget(), t), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(on("eps", P2(1, 1), t), 1 - Betas().alpha(t))
    assert torch.allclose(on("eps", Snr(), t), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(on("x_0", OnClean(), t), torch.ones(3, dtype=torch.float64))
    c_out = EDM.scalings(t).c_out
    assert torch.allclose(Edm(0.5)(EDM.snr(t), c_out) * c_out**2, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("weight", NOISE_WEIGHTS.names())
@pytest.mark.parametrize("process", [EDM, DDPM, FLOW], ids=["edm", "ddpm", "flow"])
def test_the_right_answer_has_no_loss_and_a_wrong_one_has(process: Gaussian, weight: Any) -> None:
    objective = OBJECTIVES.build({"type": "denoising", "weight": weight}, process=process)
    zeros = Batch(torch.zeros(4, 16, 6))

    class Right(Fixed):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None) -> Field:
            seen = t.double() * 4 if process.target == "edm" else t.double()
            if process.target == "edm":
                sigma = seen.exp()
                time = process.schedule.inverse(1 / (1 + sigma**2))
            else:
                time = (seen + 1) / 1000 if process.steps else seen / 1000
            _, b = process.amplitudes(time)
            noise = x_t.double() / (process.scalings(time).c_in * b)[:, None, None]
            return Field(process.output_target(torch.zeros_like(noise), noise, time).float())

    assert float(objective(Right(0), zeros, Rng.stream(3)).value) == pytest.approx(0, abs=1e-5)
    assert float(objective(Fixed(3.0), zeros, Rng.stream(3)).value) > 0.01


@every_dropping_switch
def test_keeping_all_tokens_is_the_plain_loss(masking: dict[str, Any]) -> None:
    built, objective = network(masking).eval(), Denoising(EDM, label_dropout=0)
    plain = objective(built, batch, Rng.stream(5))
    kept = objective(built, batch, Rng.stream(5), keep_ratio=1.0)
    assert torch.equal(plain.value, kept.value)


def test_the_loss_of_kept_tokens_is_the_loss_of_their_pixels() -> None:
    """Token space against image space: fact 25."""
    built, objective = network(SMALL["deferred"]).eval(), Denoising(EDM, label_dropout=0)
    images = Rng.stream("images").normal((4, 6, 4, 4))  # patches of one pixel: 6 channels
    tokens = Batch(patchify(images, 1), batch.cond)
    loss = objective(built, tokens, Rng.stream(5), keep_ratio=0.25)
    rng = Rng.stream(5)
    t = objective._times(4, rng, images.device)
    subset = TokenSubset.draw(4, 16, 0.25, rng)
    noise = EDM.draw_noise(tokens.x_0, rng)
    x_t, c = EDM.corrupt(tokens.x_0, t, noise), EDM.scalings(t)
    seen = (c.c_in[:, None, None] * x_t).float()
    field = built(seen, c.c_noise.float(), batch.cond, subset=subset)
    clean = EDM.clean(subset.scatter(field.value), x_t, t)
    error = unpatchify((clean - tokens.x_0).square(), (4, 4), 1)
    is_visible = unpatchify(subset.is_kept()[..., None].expand(-1, -1, 6).float(), (4, 4), 1)
    weight = (1 / c.c_out**2)[:, None, None, None]
    expected = (weight * error * is_visible).sum() / is_visible.sum()
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-5)


@every_switch
@pytest.mark.parametrize("has_variance", [False, True])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.25])
def test_gradients_reach_every_parameter(masking: dict[str, Any], has_variance: bool, keep_ratio: float) -> None:
    if masking["type"] == "none" and keep_ratio < 1:
        return
    process = Gaussian(Betas(), "v", steps=1000)
    built = network(masking, has_variance=has_variance).train()
    Denoising(process)(built, batch, Rng.stream(0), keep_ratio=keep_ratio).value.backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_dropped_tokens_have_a_loss_under_maskdit_alone() -> None:
    for name, masking in list(SMALL.items())[1:]:
        logs = Denoising(EDM)(network(masking), batch, Rng.stream(0), keep_ratio=0.5).logs
        assert ("reconstruction" in logs) is (name == "maskdit")


@pytest.mark.learned
def test_maskdit_learns_what_its_noisy_patches_look_like() -> None:
    """A network whose x_0 is the normalised noisy patch has no reconstruction loss."""

    class Says(Fixed):
        traits = NetworkTraits(reconstructs=True)

        def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None) -> Field:
            sigma = (4 * t).exp()[:, None, None]
            noisy = x_t * (sigma**2 + 0.25).sqrt()
            normal = (noisy - noisy.mean(-1, keepdim=True)) / (noisy.var(-1, keepdim=True) + 1e-6).sqrt()
            c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
            return Field((normal - c_skip * noisy) / c_out)

    logs = Denoising(EDM)(Says(0), batch, Rng.stream(0), keep_ratio=0.5).logs
    assert float(logs["reconstruction"][0]) == pytest.approx(0, abs=1e-4)


@every_dropping_switch
@pytest.mark.parametrize("keep_ratio", [0.99, 0.97])
def test_a_ratio_that_rounds_to_all_tokens_is_the_plain_loss(masking: dict[str, Any], keep_ratio: float) -> None:
    built, objective = network(masking).eval(), Denoising(EDM, label_dropout=0)
    loss = objective(built, batch, Rng.stream(5), keep_ratio=keep_ratio).value
    assert loss.isfinite()
    field = Denoising(EDM, label_dropout=0)(network(SMALL["naive"]).eval(), batch, Rng.stream(5), keep_ratio=keep_ratio)
    assert "reconstruction" not in field.logs


@every_switch
@pytest.mark.parametrize("target", ["v", "flow", "x_0"])
def test_discrete_times_of_a_schedule_that_ends_in_noise_alone_have_finite_losses(
    masking: dict[str, Any], target: Any
) -> None:
    process = Gaussian(Rectified(), target, "straight", steps=4)  # a quarter of the rows is at t = 1
    keep_ratio = 1.0 if masking["type"] == "none" else 0.5
    for seed in range(4):
        loss = Denoising(process)(network(masking), batch, Rng.stream(seed), keep_ratio=keep_ratio)
        assert loss.value.isfinite()


def test_eps_of_a_schedule_that_ends_in_noise_alone_is_finite_too() -> None:
    process = Gaussian(Rectified(), "eps", "straight", steps=4)
    assert Denoising(process)(network(SMALL["none"]), batch, Rng.stream(0)).value.isfinite()


def test_a_spread_of_keep_ratios_is_drawn_below_the_one_asked_for() -> None:
    kept = []

    class Counts(Fixed):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None) -> Field:
            kept.append(subset.keep.shape[1])
            return Field(torch.zeros(len(x_t), subset.keep.shape[1], 6), subset=subset)

    wide = Batch(torch.zeros(2, 256, 6))
    for seed in range(300):
        Denoising(EDM, keep_spread=0.2)(Counts(0), wide, Rng.stream(seed), keep_ratio=0.7)
    assert (min(kept) - 128, 179 - max(kept)) == pytest.approx((1, 1), abs=2)  # MDTv2: 128 to 179 of 256


def test_label_dropout_happens_in_training_alone() -> None:
    seen = []

    class Sees(Fixed):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None) -> Field:
            seen.append(float((cond.labels == NULL).float().mean()))
            return Field(torch.zeros_like(x_t))

    many = Batch(torch.zeros(4000, 1, 1), Condition(torch.ones(4000, dtype=torch.long)))
    for training in (True, False):
        model = Sees(0)
        model.training = training
        Denoising(EDM, label_dropout=0.2)(model, many, Rng.stream(0))
    assert seen == pytest.approx([0.2, 0], abs=0.02)


def test_the_posterior_variance_is_the_published_one() -> None:
    found = posterior(DDPM, times(1, 500, 999)).log_variance.exp()
    assert found.tolist() == pytest.approx(GOLDEN["posterior_variance_linear[1,500,999]"], rel=1e-6)
    first, second = posterior(DDPM, times(0, 1)).log_variance.tolist()
    assert first == pytest.approx(second)


def test_the_posterior_mean_of_the_truth_is_on_the_way_to_x_0() -> None:
    """q(x_s | x_t, x_0) averaged over x_t is q(x_s | x_0)."""
    t = times(1, 10, 500, 999)
    q, now, before = posterior(DDPM, t), Betas().alpha(t), Betas().alpha(t - 1e-3)
    assert torch.allclose(q.from_clean + q.from_noisy * now.sqrt(), before.sqrt())
    assert torch.allclose(q.log_variance.exp() + q.from_noisy**2 * (1 - now), 1 - before)


def test_the_bound_is_zero_for_the_posterior_itself_and_grows_with_a_wrong_variance() -> None:
    t, x_0 = times(5, 300, 900), Rng.stream(1).normal((3, 8, 2)).clamp(-1, 1)
    noise = Rng.stream(2).normal((3, 8, 2))
    x_t = DDPM.corrupt(x_0, t, noise)
    right = variational_bound(DDPM, Field(noise, torch.full_like(noise, -1.0)), x_0, x_t, t)
    wrong = variational_bound(DDPM, Field(noise, torch.full_like(noise, 1.0)), x_0, x_t, t)
    assert right.tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert (wrong[:2] > right[:2]).all()  # where there is much noise the bounds on the variance meet


def test_the_bound_trains_the_variance_and_nothing_else() -> None:
    t, x_0 = times(5, 300), Rng.stream(1).normal((2, 8, 2)).clamp(-1, 1)
    value, spread = (torch.zeros(2, 8, 2, requires_grad=True) for _ in range(2))
    variational_bound(DDPM, Field(value, spread), x_0, DDPM.corrupt(x_0, t, torch.ones_like(x_0)), t).sum().backward()
    assert value.grad is None
    assert spread.grad is not None
    assert (spread.grad != 0).all()


def test_probabilities_of_all_bytes_sum_to_one() -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_scale in ((0.1, -1.0), (0.9, -3.0), (-2.0, 0.5)):
        p = discretised_log_prob(levels, torch.tensor(mean), torch.tensor(log_scale)).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-6)


def test_a_learned_variance_needs_discrete_times() -> None:
    with pytest.raises(ValueError, match=r"needs process\.steps of at least 2 and scale preserving"):
        posterior(FLOW, torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout must be in"),
        ({"keep_spread": -0.1}, "keep_spread must be in"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoising(EDM, **arguments)


def test_logs_are_sums_with_their_counts() -> None:
    loss = Denoising(EDM, label_dropout=0)(Fixed(0.0), batch, Rng.stream(0))
    total, count = loss.logs["squared_error"].tolist()
    quarters = [value for key, value in loss.logs.items() if key.startswith("squared_error/")]
    assert count == sum(float(value[1]) for value in quarters) == 4
    assert total == pytest.approx(sum(float(value[0]) for value in quarters), rel=1e-5)
    assert math.isfinite(float(loss.value))


def test_what_is_normalised_needs_tokens_of_two_numbers() -> None:
    one, two = (TokenLayout.of(Stream("image", "image", 0, (2, 2), width=width)) for width in (1, 2))

    class Dropping(torch.nn.Module):
        traits = NetworkTraits(reconstructs=True)

    for layout, weight in ((two, 0.1), (one, 0.0), (2, 0.1)):
        Denoising(Gaussian(), reconstruction_weight=weight, layout=layout).attach(Dropping(), None)
    with pytest.raises(ValueError, match=r"objective\.reconstruction_weight: .* these have 1 number"):
        Denoising(Gaussian(), layout=one).attach(Dropping(), None)
    Normalised().build(two)
    with pytest.raises(ValueError, match="target: normalised needs tokens of at least 2 numbers"):
        Normalised().build(one)
