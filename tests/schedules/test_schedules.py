"""Laws of every schedule in the registry, and the published counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.schedules import (
    SCHEDULES,
    Arccos,
    Cosine,
    Exponential,
    Fixed,
    Linear,
    Log,
    LogExp,
    Polynomial,
    Power,
    Schedule,
    TruncatedNormal,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_discrete.json").read_text())
ENDS = {
    "exponential": (1.0, math.exp(-5)),
    "truncated_normal": (0.5, 0.0),
    "fixed": (0.25, 0.25),
    "betas": (1.0, 4.035829765375676e-05),  # as published: golden/image_continuous.json
}
"""alpha(0) and alpha(1) of those that bend the rule; 1 and 0 for all others."""

MOVING = [name for name in SCHEDULES.names() if name != "fixed"]
"""Those with a path from data to nothing."""

every_schedule = pytest.mark.parametrize("name", SCHEDULES.names())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def times(dtype: torch.dtype = torch.float64, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.linspace(low, high, 1001, dtype=dtype)


def published(name: str, n: int) -> Schedule:
    return {
        "cosine": Cosine(),
        "arccos": Arccos(),
        "linear": Linear(),
        "pow2": Power(2),
        "pow3": Power(3),
        "root": Power(0.5),
        "log": Log(math.log(n)),
        "exp": Exponential(math.log(n)),
    }[name]


def test_the_mask_ratios_of_mar_have_the_published_law() -> None:
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    ratio = TruncatedNormal(mean=1.0, std=0.25, low=0.7, high=1.0).mask_ratio(t)
    golden = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
    found = [ratio.mean().item(), ratio.std().item(), ratio.median().item()]
    assert found == pytest.approx(golden["mar mask ratio truncnorm mean,std,median"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("linear", Linear()), ("cosine", Cosine()), ("poly-0.5", Polynomial(0.5)), ("exp", Exponential()),
        ("log", LogExp()),
    ],
)  # fmt: skip
def test_mask_ratios_of_emigm_are_as_published(name: str, schedule: Schedule) -> None:
    found = schedule.mask_ratio(torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)).tolist()
    golden = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
    assert found == pytest.approx(golden[f"emigm gamma {name} t=.1,.2,.5,1"], abs=1e-6)


@every_dtype
@every_schedule
def test_alpha_falls_from_one_to_zero_but_for_those_that_say_otherwise(name: str, dtype: torch.dtype) -> None:
    alpha = SCHEDULES.build(name).alpha(times(dtype))
    first, last = ENDS.get(name, (1.0, 0.0))
    eps = torch.finfo(dtype).eps
    assert alpha.dtype == dtype
    assert alpha[0].item() == pytest.approx(first, abs=2 * eps)
    assert alpha[-1].item() == pytest.approx(last, abs=2 * eps)
    assert (alpha.diff() <= 0).all()
    assert ((alpha >= 0) & (alpha <= 1)).all()


@every_dtype
@every_schedule
def test_alpha_dot_is_the_derivative_of_alpha_and_never_positive(name: str, dtype: torch.dtype) -> None:
    schedule = SCHEDULES.build(name)
    t = times(low=0.01, high=0.99).requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    if name in ("truncated_normal", "log_normal"):  # torch has no derivative of ndtri
        derivative = (schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)).detach() / 2e-6
    alpha_dot = schedule.alpha_dot(t.detach().to(dtype))
    assert alpha_dot.dtype == dtype
    assert torch.allclose(alpha_dot.double(), derivative, rtol=1e-4)
    assert (schedule.alpha_dot(times(dtype)) <= 0).all()


@pytest.mark.parametrize("name", MOVING)
def test_inverse_undoes_alpha(name: str) -> None:
    schedule = SCHEDULES.build(name)
    t = times()
    t = t[(schedule.alpha_dot(t) < 0) & t.gt(0) & t.lt(1)]  # where it falls: `log` is flat at its end
    assert torch.allclose(schedule.inverse(schedule.alpha(t)), t, atol=1e-9)
    alpha = schedule.alpha(times())
    assert torch.allclose(schedule.alpha(schedule.inverse(alpha)), alpha, atol=1e-12)


@every_schedule
def test_what_is_derived_agrees_with_alpha(name: str) -> None:
    schedule, t = SCHEDULES.build(name), times(low=0.05, high=0.95)
    alpha = schedule.alpha(t)
    assert torch.equal(schedule.mask_ratio(t), 1 - alpha)
    assert torch.allclose(schedule.elbo_weight(t) * (1 - alpha), -schedule.alpha_dot(t))
    assert torch.allclose(torch.sigmoid(schedule.log_snr(t)), alpha)


@every_schedule
def test_shape_is_kept(name: str) -> None:
    schedule, t = SCHEDULES.build(name), torch.rand(2, 3)
    assert schedule.alpha(t).shape == schedule.alpha_dot(t).shape == (2, 3)
    if name in MOVING:
        assert schedule.inverse(t).shape == (2, 3)


@pytest.mark.parametrize("rounding", ["masked", "revealed"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@every_schedule
def test_counts_fall_to_zero_and_reveal_something_while_they_can(name: str, steps: int, rounding: Any) -> None:
    n = torch.tensor([0, 1, 5, 33, 256])
    counts = torch.cat([n[None], SCHEDULES.build(name).masked_counts(n, steps, rounding)])
    assert counts.shape == (steps + 1, 5)
    assert (counts[-1] == 0).all()
    assert (counts[:-1] >= n.clamp(max=1)).all()
    revealed = -counts.diff(dim=0)
    assert ((revealed >= 1) | (counts[:-1] <= 1)).all()


def test_counts_of_a_row_depend_on_that_row_only() -> None:
    together = Cosine().masked_counts(torch.tensor([7, 256, 100]), 8)
    assert together[:, 1].tolist() == Cosine().masked_counts(torch.tensor([256]), 8)[:, 0].tolist()


@pytest.mark.parametrize("key", GOLDEN["maskgit_mask_len"])
def test_counts_equal_the_published_ones(key: str) -> None:
    name, n, steps = key.replace("_N", " ").replace("_T", " ").split()
    counts = published(name, int(n)).masked_counts(torch.tensor([int(n)]), int(steps))[:, 0].tolist()
    # The published list ends with a forced minimum of 1; ours with 0, as the last step reveals all.
    assert counts[:-1] == GOLDEN["maskgit_mask_len"][key][:-1]
    assert counts[-1] == 0


@pytest.mark.parametrize(
    ("schedule", "n", "steps", "expected"),
    [
        (Cosine(), 256, 16, [254, 251, 244, 236, 225, 212, 197, 181, 162, 142, 120, 97, 74, 49, 25]),
        (
            Cosine(),
            256,
            20,
            [255, 252, 248, 243, 236, 228, 218, 207, 194, 181, 166, 150, 133, 116, 97, 79, 59, 40, 20],
        ),
        (Linear(), 100, 12, [91, 83, 75, 66, 58, 50, 41, 33, 25, 16, 8]),
    ],
)
def test_counts_equal_those_of_mage_and_amused(schedule: Schedule, n: int, steps: int, expected: list[int]) -> None:
    assert schedule.masked_counts(torch.tensor([n]), steps)[:, 0].tolist() == [*expected, 0]


def test_counts_of_maskbit_begin_and_end_as_published() -> None:
    counts = Arccos().masked_counts(torch.tensor([512]), 64)[:, 0].tolist()
    assert counts[:5] == [506, 501, 496, 491, 486]
    assert counts[-6:] == [129, 115, 100, 81, 57, 0]


def test_counts_from_the_third_step_are_those_of_an_edit() -> None:
    counts = Cosine().masked_counts(torch.tensor([100]), 12)[2:, 0].tolist()
    assert counts == [92, 86, 79, 70, 60, 50, 38, 25, 13, 0]


@pytest.mark.parametrize(("key", "n", "steps"), [("16x16_T8", 256, 8), ("16x16_T32", 256, 32), ("24x24_T32", 576, 32)])
def test_counts_rounded_by_what_is_revealed_are_those_of_halton(key: str, n: int, steps: int) -> None:
    counts = Arccos().masked_counts(torch.tensor([n]), steps, "revealed")[:, 0]
    expected = list(GOLDEN["halton_cumulative_revealed"][key])
    if key == "24x24_T32":
        expected[15] += 1  # arccos(1/2) reveals exactly 576 / 3; the published code loses one to the last bit
    assert (n - counts).tolist() == expected


def test_ratios_are_of_the_start_and_do_not_compound() -> None:
    counts = Linear().masked_counts(torch.tensor([1 << 16]), 8)[:, 0] / (1 << 16)
    assert counts.tolist() == [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]  # compounding: .875, .656, .410, ...


def test_a_decoding_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Cosine().masked_counts(torch.tensor([4]), 0)


@pytest.mark.parametrize(
    ("schedule", "median", "above", "quantiles"),
    [
        (Cosine(), 0.70711, 0.28713, [0.98769, 0.92388, 0.38268, 0.15643]),
        (Arccos(), 0.66667, 0.15643, [0.93623, 0.83914, 0.46011, 0.28713]),
    ],
)
def test_cosine_and_arccos_mask_two_over_pi_on_average(
    schedule: Schedule, median: float, above: float, quantiles: list[float]
) -> None:
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    ratio = schedule.mask_ratio(t)
    assert ratio.mean().item() == pytest.approx(2 / math.pi, abs=1e-5)
    assert ratio.median().item() == pytest.approx(median, abs=2e-5)
    assert (ratio > 0.9).double().mean().item() == pytest.approx(above, abs=2e-5)
    at = schedule.mask_ratio(1 - torch.tensor([0.1, 0.25, 0.75, 0.9], dtype=torch.float64))
    assert at.tolist() == pytest.approx(quantiles, abs=1e-5)


def test_truncated_normal_is_the_distribution_of_mage() -> None:
    schedule = TruncatedNormal()
    levels = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    expected = [0.50347, 0.53437, 0.58557, 0.67567, 0.78681, 0.88478, 0.98377]
    assert schedule.mask_ratio(levels).tolist() == pytest.approx(expected, abs=1e-5)
    ratio = schedule.mask_ratio((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert ratio.mean().item() == pytest.approx(0.69360, abs=1e-5)
    assert ratio.std().item() == pytest.approx(0.12859, abs=1e-5)
    assert (ratio < 0.55).double().mean().item() == pytest.approx(0.14588, abs=2e-5)


def test_families_agree_where_they_meet() -> None:
    t = times()
    for schedule in (Polynomial(1), Power(1)):
        assert torch.equal(schedule.alpha(t), Linear().alpha(t))
    ratio = Cosine().mask_ratio(t)
    assert torch.allclose(Arccos().mask_ratio(1 - ratio), 1 - t, atol=1e-7)  # inverse functions of each other


@pytest.mark.parametrize("make", [Polynomial, Power, Exponential, Log])
def test_a_parameter_that_is_not_positive_is_refused(make: Any) -> None:
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"(power|rate) must be positive, got"):
            make(value)


def test_an_impossible_truncation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need 0 <= low < high <= 1, got low 0\.9 and high 0\.5"):
        TruncatedNormal(low=0.9, high=0.5)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        TruncatedNormal(std=0)


def test_the_fixed_ratio_is_the_same_at_all_times_and_has_no_inverse() -> None:
    assert Fixed(0.6).mask_ratio(times()).tolist() == pytest.approx([0.6] * 1001)
    with pytest.raises(ValueError, match="fixed is constant and has no inverse"):
        Fixed().inverse(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 0"):
        Fixed(0)
