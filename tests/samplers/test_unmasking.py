"""Laws of the unmasking schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers.masked.joint import Joint
from maskgen.samplers.masked.order import Proposal
from maskgen.samplers.masked.unmasking import (
    UNMASKINGS,
    Bernoulli,
    Clock,
    Euler,
    Even,
    Move,
    One,
    Scheduled,
    Share,
    Unmasking,
)
from maskgen.schedules import SCHEDULES, Cosine, Fixed, Linear
from tests.toys import Given

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())

MOVING = sorted(set(SCHEDULES.names()) - {"fixed"})


def clock(t: float = 1.0, n_left: int = 16, n_rows: int = 1, step: int = 0, n_steps: int = 8) -> Clock:
    n = torch.full((n_rows,), n_left)
    return Clock(step, n_steps, torch.full((n_rows,), t, dtype=torch.float64), n, n, 16)


def rows(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def move(now: Clock, s: Tensor, sigma: Tensor | None = None, n_remasked: Tensor | None = None) -> Move:
    sigma = torch.zeros_like(s) if sigma is None else sigma
    return Move(now, s, sigma, torch.zeros_like(now.n_left) if n_remasked is None else n_remasked)


def proposal(n_rows: int) -> Proposal:
    """Five candidates in each of these rows."""
    where = torch.zeros(n_rows, 16, dtype=torch.bool)
    where[:, 3:8] = True
    logits = 3 * torch.randn(16, 5, 4, generator=torch.Generator().manual_seed(0))[-n_rows:].flatten(0, 1)
    prediction = Categorical(logits, where)
    return Proposal(where, 0, 2, (16,), prediction, prediction, logits.argmax(-1))


def decode_counts(unmasking: Unmasking, n: int, n_steps: int) -> list[int]:
    """Tokens revealed in each step, of n, as the loop goes."""
    left, t, counts = torch.tensor([n]), rows(1.0), []
    for step in range(n_steps):
        now = Clock(step, n_steps, t, torch.tensor([n]), left, n)
        t = unmasking.next_time(now, Rng.stream(0))
        count = left if now.is_last else unmasking.count(move(now, t), Rng.stream(0)).minimum(left)
        counts.append(int(count))
        left = left - count
    return counts


@pytest.mark.parametrize("name", UNMASKINGS.names())
def test_every_schedule_counts_in_each_row_what_that_row_needs(name: str) -> None:
    unmasking = UNMASKINGS.build(name)
    batch = clock(0.6, 5, n_rows=16, step=3)
    rng = Rng.per_sample(range(16))
    s = unmasking.next_time(batch, rng)
    n = unmasking.count(Move(batch, s, rows(0, 16), torch.zeros(16, dtype=torch.long), proposal(16)), rng)
    alone, own = clock(0.6, 5, step=3), Rng.per_sample([15])
    s_alone = unmasking.next_time(alone, own)
    assert torch.equal(s[15:], s_alone)
    last = Move(alone, s_alone, rows(0), torch.zeros(1, dtype=torch.long), proposal(1))
    assert torch.equal(n[15:], unmasking.count(last, own))
    assert n.dtype == torch.int64
    assert (s >= 0).all()
    assert (s < unmasking.time(batch)).all()


def test_even_has_the_counts_of_llada() -> None:
    for given, expected in (GOLDEN["counts"]["llada"] | GOLDEN["counts"]["block_refinement"]).items():
        n, n_steps = map(int, given.split("/"))
        assert decode_counts(Even(), n, n_steps) == expected


def test_share_has_the_counts_of_dream_and_of_dllm() -> None:
    published = {
        "dream": Share(),
        "dllm_linear": Share(Linear(), "round", end=0),
        "dllm_cosine_maskgit": Share(Cosine(), "round", end=0),
    }
    for name, unmasking in published.items():
        for given, expected in GOLDEN["counts"][name].items():
            n, n_steps = map(int, given.split("/"))
            assert decode_counts(unmasking, n, n_steps) == expected, (name, given)


@pytest.mark.parametrize("end", [-0.1, 1.0, float("nan")])
def test_times_that_end_nowhere_are_refused(end: float) -> None:
    with pytest.raises(ValueError, match=r"end must be in \[0, 1\), got"):
        Share(end=end)


@pytest.mark.parametrize("unmasking", [Even(), Share(), Scheduled(), Euler()])
def test_counts_make_up_for_what_is_masked_again(unmasking: Unmasking) -> None:
    plain = unmasking.count(move(clock(0.9), rows(0.8)), Rng.stream(0))
    assert unmasking.count(move(clock(0.9), rows(0.8), n_remasked=torch.tensor([3])), Rng.stream(0)) == plain + 3


def test_euler_has_the_chance_of_discrete_flow_matching() -> None:
    chance = GOLDEN["flow_euler"]["euler"]  # at tau = 1 - t = 0.4, h = 0.2; the exact chance is 1/3
    for uniform, n in ((chance - 1e-9, 16), (chance + 1e-9, 0)):
        rng = Given(torch.tensor(uniform, dtype=torch.float64))
        assert Euler(Linear()).count(move(clock(0.6), rows(0.4)), rng).item() == n


def test_eight_euler_steps_leave_what_flow_matching_leaves_for_the_last() -> None:
    masked, t, batch = 1.0, 1.0, 400
    for step in range(7):
        s = 1 - (step + 1) / 8
        n = Euler(Linear()).count(move(clock(t, n_rows=batch), rows(s, batch)), Rng.stream(step))
        masked *= 1 - n.double().mean().item() / 16
        t = s
    assert masked == pytest.approx(0.179450, abs=0.01)  # ancestral sampling leaves 0.125


@pytest.mark.parametrize("name", MOVING)
def test_bernoulli_reveals_the_share_that_becomes_visible(name: str) -> None:
    schedule = SCHEDULES.build(name)
    t, s = rows(0.75, 4000), rows(0.5, 4000)
    alpha_t, alpha_s = schedule.alpha(t)[0], schedule.alpha(s)[0]
    n = Bernoulli(schedule).count(move(clock(0.75, 10, 4000), s), Rng.stream(0))
    chance = ((alpha_s - alpha_t) / (1 - alpha_t)).item()
    assert n.double().mean().item() == pytest.approx(10 * chance, abs=0.12)
    assert n.double().var().item() == pytest.approx(10 * chance * (1 - chance), abs=0.2)


@pytest.mark.parametrize(
    ("alpha_t", "alpha_s", "sigma", "chance"),
    [(0.9, 0.95, 0.02, 0.68), (0.4, 0.6, 0.008, 0.338667), (0.8, 0.9, 0.125, 1.0), (0.9, 0.95, 0.0, 0.5)],
)
def test_bernoulli_has_the_chances_of_remdm(alpha_t: float, alpha_s: float, sigma: float, chance: float) -> None:
    for uniform, n in ((chance - 1e-5, 16), (chance + 1e-5, 0)):
        rng = Given(torch.tensor(min(uniform, 1 - 1e-9), dtype=torch.float64))
        revealed = Bernoulli(Linear()).count(move(clock(1 - alpha_t), rows(1 - alpha_s), rows(sigma)), rng)
        assert revealed.item() == (16 if chance == 1 else n)


def test_bernoulli_reveals_no_more_than_is_left() -> None:
    count = Bernoulli(Linear()).count(move(clock(0.5, 3), rows(0)), Given(torch.tensor(0.0)))
    assert count.item() == 3


def test_first_hitting_times_are_order_statistics() -> None:
    now, rng, means = clock(1.0, 4, 20_000), Rng.stream(0), []
    for left in (4, 3, 2, 1):
        s = One(Linear()).next_time(Clock(0, 4, now.t, now.n_start, torch.full((20_000,), left), 16), rng)
        now = Clock(0, 4, s, now.n_start, now.n_left, 16)
        means.append(s.mean().item())
    assert means == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.006)


@pytest.mark.parametrize("name", sorted(set(MOVING) - {"exponential", "truncated_normal", "betas"}))
def test_first_hitting_times_of_every_schedule_are_one_clock_read_differently(name: str) -> None:
    schedule = SCHEDULES.build(name)
    ratio = schedule.mask_ratio(One(schedule).next_time(clock(1.0, 4, 100), Rng.stream(0)))
    assert torch.allclose(ratio, One(Linear()).next_time(clock(1.0, 4, 100), Rng.stream(0)))


def test_a_schedule_that_is_constant_is_refused() -> None:
    for make in (One, Bernoulli, Euler, Scheduled, Share, Joint):
        with pytest.raises(ValueError, match=r"schedule fixed has the same alpha at all times.* use linear or cosine"):
            make(schedule=Fixed())


def test_a_schedule_of_counts_takes_no_more_steps_than_tokens() -> None:
    for unmasking in (Scheduled(), Even()):
        assert [unmasking.n_steps(steps, 49) for steps in (8, 49, 1_000_000)] == [8, 49, 49]
    assert Bernoulli().n_steps(1000, 49) == 1000


def test_one_needs_a_step_a_token_and_reveals_nothing_where_nothing_is_left() -> None:
    assert One().n_steps(8, 100) == 100
    left = Clock(0, 4, rows(0.5, 3), torch.tensor([4, 4, 0]), torch.tensor([4, 1, 0]), 16)
    counts = One().count(move(left, rows(0.4, 3)), Rng.stream(0))
    assert counts.tolist() == [1, 1, 0]
    assert One().next_time(left, Rng.stream(0)).isfinite().all()
