"""Laws of predictions and conditions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.core.predictions import NULL, Categorical, Condition, Point, Prediction
from maskgen.core.rng import Rng
from tests.toys import Given

LOGITS = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
WHERE = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5


def test_categorical_is_a_prediction() -> None:
    assert isinstance(Categorical(LOGITS), Prediction)


def test_one_value_a_token_has_no_temperature() -> None:
    point = Point(torch.ones(1, 2, 3))
    assert torch.equal(point.sample(Rng.stream(0)), point.value)
    with pytest.raises(UserError, match="one value per token"):
        point.sample(Rng.stream(0), 0.5)


def test_temperature_zero_takes_the_mode_and_draws_nothing() -> None:
    assert torch.equal(Categorical(LOGITS).sample(Given(), 0), LOGITS.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_frequencies_of_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    drawn = Categorical(logits.expand(40_000, 1, 4)).sample(Rng.stream(0), temperature)
    expected = torch.softmax(logits / temperature, 0)
    assert torch.allclose(torch.bincount(drawn[:, 0], minlength=4) / 40_000, expected, atol=0.01)


@pytest.mark.parametrize("rare", [0, 1, 2])
def test_a_token_of_probability_1e_9_is_drawn_once_in_1e9(rare: int) -> None:
    p = torch.full((3,), (1 - 1e-9) / 2, dtype=torch.float64)
    p[rare] = 1e-9
    low = p[:rare].sum()
    uniform = low + (torch.arange(-500, 1500, dtype=torch.float64) + 0.5) * 1e-12  # half an interval too much each side
    uniform = uniform[(uniform >= 0) & (uniform < 1)]
    drawn = Categorical(p.log().expand(1, len(uniform), 3)).sample(Given(uniform))
    assert (drawn == rare).sum().item() == pytest.approx(1000, abs=2)


def test_the_ends_of_the_uniform_never_draw_an_impossible_token() -> None:
    logits = torch.tensor([-torch.inf, 0.3, -torch.inf, 1.7, -torch.inf])
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert Categorical(logits.expand(1, 2, 5)).sample(Given(ends)).tolist() == [[1, 3]]


def test_a_draw_does_not_depend_on_which_positions_were_asked_for() -> None:
    whole = Categorical(LOGITS).sample(Rng.per_sample(range(4)))
    packed = Categorical(LOGITS[WHERE], WHERE).sample(Rng.per_sample(range(4)))
    assert torch.equal(whole[WHERE], packed)


def test_guidance_of_scale_one_is_the_condition_and_of_zero_the_null() -> None:
    cond, null = Categorical(LOGITS), Categorical(LOGITS.flip(0))
    assert torch.allclose(cond.guide(null, 1.0).logits, cond.logits)
    assert torch.allclose(cond.guide(null, 0.0).logits, null.logits)


def test_both_ways_to_write_guidance_agree() -> None:
    cond, null, w = LOGITS, LOGITS.flip(0), 2.5
    assert torch.allclose(
        Categorical(cond).guide(Categorical(null), 1 + w).logits, (1 + w) * cond - w * null, atol=1e-5
    )


def test_a_scale_a_row_is_the_scale_of_that_row_packed_or_not() -> None:
    scale = torch.tensor([0.0, 1.0, 2.0, 3.0])
    cond, null = Categorical(LOGITS), Categorical(LOGITS.flip(0))
    whole = cond.guide(null, scale).logits
    for row in range(4):
        assert torch.allclose(whole[row], cond.guide(null, float(scale[row])).logits[row])
    packed = Categorical(LOGITS[WHERE], WHERE).guide(Categorical(LOGITS.flip(0)[WHERE], WHERE), scale)
    assert torch.equal(packed.logits, whole[WHERE])


@pytest.mark.parametrize("where", [None, WHERE, torch.zeros_like(WHERE)])
def test_halves_undo_a_joined_pass(where: torch.Tensor | None) -> None:
    twice = torch.cat([LOGITS, LOGITS + 1])
    joined = Categorical(twice) if where is None else Categorical(twice[where.repeat(2, 1)], where.repeat(2, 1))
    first, second = joined.halves()
    assert torch.equal(first.logits, LOGITS if where is None else LOGITS[where])
    assert torch.equal(second.logits, first.logits + 1)
    if where is not None:
        assert torch.equal(first.where, where)
        assert torch.equal(second.where, where)


def test_the_nucleus_keeps_the_token_that_crosses() -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())["top_p"]
    shuffled = torch.tensor([2, 0, 3, 1])
    logits = torch.tensor(golden["p"], dtype=torch.float64).log()[shuffled]
    kept = Categorical(logits).nucleus(golden["top_p"])
    expected = torch.tensor(golden["inclusive"], dtype=torch.float64)[shuffled]
    assert torch.allclose(kept.log_probs().exp(), expected)
    assert torch.equal(kept.logits[shuffled < 3], logits[shuffled < 3])


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_nucleus_is_the_smallest_set_of_the_likeliest_that_holds_top_p(top_p: float, temperature: float) -> None:
    p = torch.softmax(LOGITS.double() / temperature, -1)
    is_kept = Categorical(LOGITS).nucleus(top_p, temperature).logits.isfinite()
    least = p.where(is_kept, 2).amin(-1)
    held = (p * is_kept).sum(-1)
    assert (held >= top_p - 1e-12).all()
    assert (held - least < top_p).all()
    assert (p.where(~is_kept, 0).amax(-1) <= least).all()


def test_a_nucleus_of_all_or_of_the_mode_is_off_and_packed_positions_stay_packed() -> None:
    prediction = Categorical(LOGITS[WHERE], WHERE)
    assert prediction.nucleus(1.0) is prediction
    assert prediction.nucleus(0.5, 0) is prediction
    nucleus = prediction.nucleus(0.5)
    assert nucleus.where is WHERE
    assert torch.equal(nucleus.logits, Categorical(LOGITS).nucleus(0.5).logits[WHERE])


@pytest.mark.parametrize("top_p", [0.0, 1.1, math.nan])
def test_an_impossible_nucleus_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], 1 = off, got"):
        Categorical(LOGITS).nucleus(top_p)


def test_log_probabilities_are_normalised_and_gathered() -> None:
    prediction, tokens = Categorical(LOGITS), LOGITS.argmin(-1)
    assert torch.allclose(prediction.log_probs().exp().sum(-1), torch.ones(4, 6))
    assert torch.equal(prediction.log_prob(tokens), prediction.log_probs().min(-1).values)


def test_half_precision_is_widened() -> None:
    assert Categorical(LOGITS.bfloat16()).log_probs().dtype == torch.float32
    assert Categorical(LOGITS.double()).log_probs().dtype == torch.float64


def test_entropy_is_log_v_when_uniform_and_zero_when_certain() -> None:
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert Categorical(torch.zeros(1, 1, 8)).entropy().item() == pytest.approx(math.log(8))
    assert Categorical(certain.expand(1, 1, 3)).entropy().item() == 0


def test_margin_is_the_lead_of_the_first_choice() -> None:
    logits = torch.tensor([0.5, 0.2, 0.3]).log().expand(1, 1, 3)
    assert Categorical(logits).margin().item() == pytest.approx(0.2)


def test_dropping_nulls_labels_with_the_probability_given() -> None:
    cond = Condition(torch.arange(10_000))
    dropped = cond.drop(0.1, Rng.stream(0)).labels
    assert ((dropped == cond.labels) | (dropped == NULL)).all()
    assert (dropped == NULL).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(cond.drop(0.0, Rng.stream(0)).labels, cond.labels)
    assert torch.equal(cond.drop(1.0, Rng.stream(0)).labels, cond.null().labels)


def test_a_dropped_caption_is_zeros_and_goes_with_its_label() -> None:
    cond = Condition(torch.arange(1000), torch.ones(1000, 2, 3))
    dropped = cond.drop(0.3, Rng.stream(0))
    assert dropped.captions is not None
    assert torch.equal(dropped.captions.any(-1).any(-1), dropped.labels >= 0)
    assert bool(((dropped.captions == 0) | (dropped.captions == 1)).all())
    null = cond.null()
    assert null.captions is not None
    assert not null.captions.any()
    rows = cond.join(null).rows(torch.tensor([0, 1500]))
    assert rows.captions is not None
    assert rows.captions[:, 0, 0].tolist() == [1, 0]


def test_joined_conditions_stand_one_after_the_other() -> None:
    cond = Condition(torch.tensor([3, 4]))
    assert cond.join(cond.null()).labels.tolist() == [3, 4, NULL, NULL]
