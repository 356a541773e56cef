"""Laws of the orders of reveal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.groups import halton_order, roberts_order
from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers.masked.order import ORDERS, Confidence, Entropy, Halton, Margin, Proposal, Random

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_discrete.json").read_text())
P = torch.tensor([[[0.5, 0.5, 0.0001], [0.6, 0.2, 0.2], [0.7, 0.3, 0.0001]]]).log()
"""(1, 3, 3): first is the least sure by its margin, second by its entropy."""


def proposal(logits: Tensor = P, step: int = 0, n_steps: int = 1) -> Proposal:
    where = torch.ones(logits.shape[:2], dtype=torch.bool)
    packed = Categorical(logits[where], where)
    return Proposal(where, step, n_steps, (logits.shape[1],), packed, packed, packed.logits.argmax(-1))


def ranks(order: Any, given: Proposal) -> list[int]:
    return order.score(given, Rng.stream(0)).argsort(1, descending=True)[0].tolist()


def test_every_order_scores_candidates_and_nothing_else() -> None:
    where = torch.tensor([[True, False, True, False, True, True], [False] * 6])
    prediction = Categorical(torch.randn(4, 5), where)
    given = Proposal(where, 0, 2, (2, 3), prediction, prediction, torch.zeros(4, dtype=torch.long))
    for name in ORDERS.names():
        score = ORDERS.build(name).score(given, Rng.per_sample([0, 1]))
        assert score.dtype == torch.float64, name
        assert torch.equal(score > -torch.inf, where), name
        assert not score.isnan().any(), name


def test_the_score_of_a_row_depends_on_that_row_only() -> None:
    logits = torch.randn(16, 6, 5)
    given, own = (replace(proposal(part, 0, 2), grid=(2, 3)) for part in (logits, logits[9:10]))
    for name in ORDERS.names():
        order = ORDERS.build(name)
        batch, alone = order.score(given, Rng.per_sample(range(16))), order.score(own, Rng.per_sample([9]))
        assert torch.equal(batch[9:10], alone), name


def test_confidence_is_the_probability_of_the_drawn_token() -> None:
    assert ranks(Confidence(), proposal()) == [2, 1, 0]
    given = replace(proposal(), tokens=torch.tensor([0, 1, 2]))
    assert ranks(Confidence(), given) == [0, 1, 2]


def test_margin_and_entropy_are_different_measures() -> None:
    assert ranks(Margin(), proposal()) == [1, 2, 0] or ranks(Margin(), proposal()) == [2, 1, 0]
    assert ranks(Margin(), proposal())[-1] == 0
    assert ranks(Entropy(), proposal())[-1] == 1


@pytest.mark.parametrize(
    ("choice_temperature", "steps", "expected"),
    [(4.5, 8, [3.9375, 3.375, 2.8125, 2.25, 1.6875, 1.125, 0.5625, 0]), (6.0, 20, [6 - 0.3 * k for k in range(1, 21)])],
)
def test_choice_noise_fades_as_published(choice_temperature: float, steps: int, expected: list[float]) -> None:
    for step in range(steps):
        given = proposal(step=step, n_steps=steps)
        noisy = Confidence(choice_temperature).score(given, Rng.stream(0))
        noise = noisy - Confidence().score(given, Rng.stream(0))
        assert torch.allclose(noise, expected[step] * Rng.stream(0).gumbel((1, 3)), atol=1e-6)


def test_noise_that_starts_full_ends_at_zero_as_in_amused() -> None:
    plain = Confidence().score(proposal(), Rng.stream(0))
    scales = []
    for step in range(12):
        noisy = Confidence(2.0, starts_full=True).score(proposal(step=step, n_steps=12), Rng.stream(0))
        scales.append(((noisy - plain) / Rng.stream(0).gumbel((1, 3)))[0, 0].item())
    assert scales == pytest.approx([2 - 2 * step / 11 for step in range(12)], abs=1e-6)
    assert scales[1] == pytest.approx(1.81818, abs=1e-5)
    assert Confidence(2.0, starts_full=True).score(proposal(), Rng.stream(0)).ne(plain).all(), "one step has all of it"


@pytest.mark.parametrize("make", [Confidence, Margin, Entropy])
def test_noise_that_does_not_fade_is_the_same_in_every_step(make: Any) -> None:
    for step in (0, 4, 9):
        noise = make(0.7, is_fading=False).score(proposal(step=step, n_steps=10), Rng.stream(0)) - make().score(
            proposal(), Rng.stream(0)
        )
        assert torch.allclose(noise, 0.7 * Rng.stream(0).gumbel((1, 3)))


def test_constant_noise_on_probabilities_draws_in_the_way_of_dream() -> None:
    n, alg_temp = 20_000, 0.3
    order = Confidence(alg_temp, is_fading=False, is_log=False)
    given = proposal(P.expand(n, 3, 3))
    first = order.score(given, Rng.stream(0)).argmax(1)
    expected = torch.softmax(P[0].max(1).values.exp() / alg_temp, 0)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((torch.bincount(first, minlength=3) / n - expected).abs() < 3 * error).all()


def test_random_order_is_uniform() -> None:
    where = torch.tensor([True, False, True, True]).expand(9000, 4)
    first = Random().score(Proposal(where, 0, 2, (4,)), Rng.stream(0)).argmax(1)
    share = torch.bincount(first, minlength=4) / 9000
    assert torch.allclose(share, torch.tensor([1.0, 0.0, 1.0, 1.0]) / 3, atol=0.02)


@pytest.mark.parametrize("make", [Confidence, Margin, Entropy])
def test_a_negative_choice_temperature_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="choice_temperature must be at least 0, got -1"):
        make(-1.0)


def test_halton_order_is_the_published_one() -> None:
    assert list(halton_order((16, 16))) == GOLDEN["halton_16_flat_row_major"]
    assert list(halton_order((24, 24))[:64]) == GOLDEN["halton_24_flat_row_major_first64"]
    assert list(halton_order((32, 32))[:64]) == GOLDEN["halton_32_flat_row_major_first64"]
    assert [divmod(flat, 16) for flat in halton_order((16, 16))[:4]] == [(8, 5), (4, 10), (12, 1), (2, 7)]


@pytest.mark.parametrize("sequence", [halton_order, roberts_order])
@pytest.mark.parametrize("grid", [(16, 16), (64, 64), (3, 7), (1, 1), (5,), (100,)])
def test_a_sequence_holds_every_position_once(grid: tuple[int, ...], sequence: Any) -> None:
    n = int(torch.tensor(grid).prod())
    assert sorted(sequence(grid)) == list(range(n))


@pytest.mark.parametrize("name", ["halton", "qlds"])
def test_a_grid_that_has_no_sequence_is_refused(name: str) -> None:
    given = Proposal(torch.ones(1, 8, dtype=torch.bool), 0, 1, (2, 2, 2))
    with pytest.raises(UserError, match=r"grids of one or two dimensions, got \(2, 2, 2\); use order random"):
        ORDERS.build(name).score(given, Rng.stream(0))


def test_rolled_halton_starts_anywhere_and_stays_there() -> None:
    given = Proposal(torch.ones(64, 16, dtype=torch.bool), 0, 2, (4, 4))
    rng = Rng.per_sample(range(64))
    order = Halton(is_rolled=True).score(given, rng).argsort(1, descending=True)
    assert len(order[:, 0].unique()) > 10
    assert torch.equal(Halton(is_rolled=True).score(given, rng).argsort(1, descending=True), order)
    whole = torch.tensor(halton_order((4, 4)))
    start = (whole == order[:, :1]).double().argmax(1)
    for row in range(64):
        assert torch.equal(order[row], whole.roll(-int(start[row])))


def test_halton_draws_nothing_from_the_stream() -> None:
    rng = Rng.stream(0)
    for is_rolled in (False, True):
        Halton(is_rolled).score(Proposal(torch.ones(1, 16, dtype=torch.bool), 0, 2, (4, 4)), rng)
    assert torch.equal(rng.uniform((3,)), Rng.stream(0).uniform((3,)))
