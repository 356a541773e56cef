"""Laws of classifier-free guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.predictions import NULL, Categorical, Condition, Field
from maskgen.core.traits import NetworkTraits
from maskgen.samplers.guidance import Guidance, training_time
from maskgen.samplers.masked.joint import PerToken
from maskgen.schedules import SCHEDULES, Cosine, Fixed, Linear
from tests.toys import pick

COND = Condition(torch.tensor([1, 2, 3]))
X_T = torch.tensor([[0, 5, 5, 1], [5, 5, 5, 5], [2, 2, 5, 5]])


class Labelled:
    """A denoiser whose logits are label * column, which counts its calls and the rows it sees."""

    traits = NetworkTraits()

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, where: Tensor | None = None, **_: Any
    ) -> Categorical:
        self.calls.append(len(x_t))
        assert t.dtype == torch.float32
        labels = torch.zeros(len(x_t)) if cond is None else cond.labels.float()
        return pick(labels[:, None, None] * torch.arange(5.0).expand(*x_t.shape, 5), where)


def at(guidance: Guidance, *t: float) -> list[float]:
    return guidance.at(torch.tensor(t, dtype=torch.float64)).tolist()


def test_the_result_is_uncond_plus_scale_times_the_difference() -> None:
    t = torch.full((3,), 0.5, dtype=torch.float64)
    logits = Guidance(3.0).bind(Labelled(), COND)(X_T, t).logits
    expected = NULL + 3.0 * (COND.labels - NULL)
    assert torch.allclose(logits[..., 1], expected[:, None].expand(3, 4).float())


@pytest.mark.parametrize("where", [X_T == 5, X_T > 9])
def test_packed_positions_are_guided_as_whole_rows_are(where: Tensor) -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    denoise = Guidance(3.0, "linear").bind(Labelled(), COND)
    assert torch.equal(denoise(X_T, t, where=where).logits, denoise(X_T, t).logits[where])


@pytest.mark.parametrize(
    ("guidance", "cond"), [(Guidance(), COND), (Guidance(4.0), None), (Guidance(4.0, interval=(0.6, 1.0)), COND)]
)
def test_guidance_that_is_off_costs_one_pass(guidance: Guidance, cond: Condition | None) -> None:
    denoiser = Labelled()
    guidance.bind(denoiser, cond)(X_T, torch.full((3,), 0.5, dtype=torch.float64))
    assert denoiser.calls == [3]


def test_guidance_that_is_on_costs_one_pass_of_twice_the_rows() -> None:
    denoiser = Labelled()
    Guidance(4.0).bind(denoiser, COND)(X_T, torch.full((3,), 0.5, dtype=torch.float64))
    assert denoiser.calls == [6]


def test_each_row_has_the_scale_of_its_own_time() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    denoise = Guidance(4.0, interval=(0.4, 0.6)).bind(Labelled(), COND)
    assert denoise(X_T, t).logits[:, 0, 1].tolist() == pytest.approx([1, NULL + 4 * 3, 3])


def test_what_stands_for_no_condition_can_be_given() -> None:
    t = torch.full((3,), 0.5, dtype=torch.float64)
    logits = Guidance(2.0).bind(Labelled(), COND, Condition(torch.full((3,), 7)))(X_T, t).logits
    assert logits[:, 0, 1].tolist() == pytest.approx([2 - 7, 4 - 7, 6 - 7])


WANTED = torch.tensor([[False] * 4, [False, True, True, False], [False] * 4])
T = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(("scale", "n_rows"), [(1.0, 1), (4.0, 2)])
def test_rows_that_need_nothing_cost_nothing(scale: float, n_rows: int) -> None:
    denoiser = Labelled()
    prediction = Guidance(scale, "linear").bind(denoiser, COND, Condition(torch.tensor([7, 8, 9])))(
        X_T, T, where=WANTED
    )
    assert denoiser.calls == [n_rows]
    assert torch.equal(prediction.where, WANTED)


@pytest.mark.parametrize("null", [None, Condition(torch.tensor([7, 8, 9]))])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_rows_left_out_change_no_answer(scale: float, null: Condition | None) -> None:
    guidance = Guidance(scale, "linear")
    whole = guidance.bind(Labelled(), COND, null)(X_T, T).logits
    assert torch.equal(guidance.bind(Labelled(), COND, null)(X_T, T, where=WANTED).logits, whole[WANTED])
    plain = Guidance().bind(Labelled(), None)(X_T, T)
    assert torch.equal(Guidance().bind(Labelled(), None)(X_T, T, where=WANTED).logits, plain.logits[WANTED])


def test_the_number_of_passes_is_decided_by_the_rows_that_are_asked_for() -> None:
    denoiser = Labelled()
    Guidance(4.0, interval=(0.6, 1.0)).bind(denoiser, COND)(X_T, T, where=WANTED)
    assert denoiser.calls == [1]


def test_a_denoiser_that_keeps_rows_is_given_all_of_them() -> None:
    denoiser = Labelled()
    denoiser.traits = NetworkTraits(keeps_rows=True)
    prediction = Guidance(4.0).bind(denoiser, COND)(X_T, T, where=WANTED)
    assert denoiser.calls == [6]
    assert torch.equal(prediction.logits, Guidance(4.0).bind(Labelled(), COND)(X_T, T, where=WANTED).logits)


@pytest.mark.parametrize(
    ("scale", "power", "steps", "after", "expected"),
    [
        (6.9, 3, 64, (0, 16, 32, 48, 63), (1, 1.00355, 1.22456, 3.23321, 6.86905)),
        (16, 2.75, 256, (0, 64, 128, 192, 255), (1, 1.01806, 1.80308, 7.4044, 15.99576)),
        (8.1, 3, 64, (0, 16, 32, 48, 63), (1, 1.00428, 1.27023, 3.68742, 8.06276)),  # MaskBit's 7.1 adds to l_c
    ],
)
def test_power_cosine_has_the_published_values(
    scale: float, power: float, steps: int, after: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    guidance = Guidance(scale, "power_cosine", power)
    assert at(guidance, *(1 - k / steps for k in after)) == pytest.approx(expected, abs=1e-5)


def test_power_cosine_of_a_discrete_process_starts_in_its_first_step_as_in_mdt() -> None:
    guidance, t = Guidance(3.8, "power_cosine", 0.01), torch.tensor([1.0, 0.5, 0.001], dtype=torch.float64)
    official = [1 + 2.8 * (1 - math.cos(math.pi * (1 - i / 1000) ** 0.01)) / 2 for i in (999, 499, 0)]
    assert guidance.at(t, time_step=1 / 1000).tolist() == pytest.approx(official)
    assert official[0] == pytest.approx(3.77, abs=0.005)
    assert guidance.is_on(t[:1], 1 / 1000)
    assert not guidance.is_on(t[:1])


def test_channels_leaves_the_last_channels_of_a_field_conditional() -> None:
    def network(x_t: Tensor, t: Tensor, cond: Condition | None = None, **_: Any) -> Field:
        assert cond is not None
        return Field(cond.labels[:, None, None].expand(x_t.shape).float(), torch.zeros_like(x_t))

    x_t, t = torch.zeros(3, 2, 8), torch.full((3,), 0.5, dtype=torch.float64)
    whole = Guidance(3.0).bind(network, COND)(x_t, t).value
    part = Guidance(3.0, channels=3).bind(network, COND, patch_area=2)(x_t, t)
    assert torch.equal(part.value[..., :6], whole[..., :6])
    assert torch.equal(part.value[..., 6:], COND.labels[:, None, None].expand(3, 2, 2).float())
    with pytest.raises(UserError, match=r"guidance.channels is for Gaussian processes.*use 0"):
        Guidance(3.0, channels=3).bind(Labelled(), COND)(X_T, t)


def test_a_network_is_given_the_time_of_training_at_the_alpha_of_the_sampler() -> None:
    t, seen = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64), list[Tensor]()

    def network(x_t: Tensor, t: Tensor, cond: Condition | None = None, *, where: Tensor | None = None) -> Tensor:
        seen.append(t)
        return torch.zeros(*x_t.shape, 5)

    Guidance().bind(network, None, network_time=training_time(Cosine(), Linear()))(X_T, t)
    assert torch.allclose(seen[0], Cosine().mask_ratio(t).float())
    for equal in (training_time(Cosine(), Cosine()), training_time(Cosine(), None), training_time(Cosine(), Fixed())):
        assert equal is None
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    moving = [SCHEDULES.build(name) for name in SCHEDULES.names() if name != "fixed"]
    for sampler in moving:
        for training in moving:
            found = (training_time(sampler, training) or (lambda t: t))(times)
            assert found.isfinite().all(), (sampler, training)
            assert ((found >= 0) & (found <= 1)).all(), (sampler, training)
    per_token = training_time(PerToken(torch.ones(4)), Linear())
    assert per_token is not None
    assert torch.equal(per_token(t), t)


def test_the_interval_of_guidance_is_in_the_time_of_the_sampler() -> None:
    t = torch.full((3,), 0.5, dtype=torch.float64)  # cosine: 0.71 of training
    denoiser = Labelled()
    guidance = Guidance(4.0, interval=(0.6, 1.0))
    guidance.bind(denoiser, COND, network_time=training_time(Cosine(), Linear()))(X_T, t)
    assert denoiser.calls == [3]


def test_linear_has_the_values_of_titok() -> None:
    expected = [1 + 4.5 * k / 8 for k in range(8)]  # its 4.5 adds to l_c and is never reached
    assert at(Guidance(5.5, "linear"), *(1 - k / 8 for k in range(8))) == pytest.approx(expected)


def test_a_ramp_is_not_rounded_down() -> None:
    values = at(Guidance(8, "power_cosine", 1), *(1 - k / 16 for k in range(16)))
    assert any(value != math.floor(value) for value in values)
    assert values == sorted(values)


@pytest.mark.parametrize("ramp", ["linear", "power_cosine"])
def test_a_ramp_goes_from_off_to_its_scale(ramp: Any) -> None:
    assert at(Guidance(4.0, ramp), 1.0, 0.0) == pytest.approx([1, 4])


def test_outside_its_interval_guidance_is_off() -> None:
    assert at(Guidance(4.0, interval=(0.25, 0.75)), 0.2, 0.25, 0.5, 0.75, 0.8) == [1, 4, 4, 4, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": -1.0},
        {"scale": math.nan},
        {"power": 0.0},
        {"interval": (0.5, 0.2)},
        {"interval": (-0.1, 1.0)},
        {"interval": (0.0, 1.1)},
        {"scale": math.inf},
        {"channels": -1},
    ],
)
def test_an_impossible_setting_is_refused_by_name(arguments: Any) -> None:
    with pytest.raises(ValueError, match=f"guidance {next(iter(arguments))} must"):
        Guidance(**arguments)
