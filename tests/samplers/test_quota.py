"""Laws of the quotas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.rng import Rng
from maskgen.samplers.quota import QUOTAS, Bernoulli, Clock, One, Scheduled
from maskgen.schedules import SCHEDULES, Cosine, Linear
from tests.toys import Given


def clock(t: float = 1.0, n_left: int = 16, n_rows: int = 1, step: int = 0, n_steps: int = 8) -> Clock:
    n = torch.full((n_rows,), n_left)
    return Clock(step, n_steps, torch.full((n_rows,), t, dtype=torch.float64), n, n, 16)


def rows(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


@pytest.mark.parametrize("name", QUOTAS.names())
def test_every_quota_counts_in_each_row_what_that_row_needs(name: str) -> None:
    quota = QUOTAS.build(name)
    batch = clock(0.6, 5, n_rows=16, step=3)
    rng = Rng.per_sample(range(16))
    s = quota.next_time(batch, rng)
    n = quota.count(batch, s, rows(0, 16), torch.zeros(16, dtype=torch.long), rng)
    alone, own = clock(0.6, 5, step=3), Rng.per_sample([11])
    s_alone = quota.next_time(alone, own)
    assert torch.equal(s[11:12], s_alone)
    assert torch.equal(n[11:12], quota.count(alone, s_alone, rows(0), torch.zeros(1, dtype=torch.long), own))
    assert n.dtype == torch.int64
    assert (s >= 0).all()
    assert (s < 0.6).all()


def test_scheduled_makes_up_for_what_is_masked_again() -> None:
    quota = Scheduled(Cosine())
    plain = quota.count(clock(), rows(0.9), rows(0), torch.tensor([0]), Rng.stream(0))
    assert quota.count(clock(), rows(0.9), rows(0), torch.tensor([3]), Rng.stream(0)) == plain + 3


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_bernoulli_reveals_the_share_that_becomes_visible(name: str) -> None:
    schedule = SCHEDULES.build(name)
    t, s = rows(0.75, 4000), rows(0.5, 4000)
    alpha_t, alpha_s = schedule.alpha(t)[0], schedule.alpha(s)[0]
    n = Bernoulli(schedule).count(clock(0.75, 10, 4000), s, rows(0, 4000), torch.zeros(4000), Rng.stream(0))
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
        revealed = Bernoulli(Linear()).count(clock(1 - alpha_t), rows(1 - alpha_s), rows(sigma), torch.tensor([0]), rng)
        assert revealed.item() == (16 if chance == 1 else n)


def test_bernoulli_reveals_no_more_than_is_left() -> None:
    count = Bernoulli(Linear()).count(clock(0.5, 3), rows(0), rows(0), torch.tensor([0]), Given(torch.tensor(0.0)))
    assert count.item() == 3


def test_first_hitting_times_are_order_statistics() -> None:
    now, rng, means = clock(1.0, 4, 20_000), Rng.stream(0), []
    for left in (4, 3, 2, 1):
        s = One(Linear()).next_time(Clock(0, 4, now.t, now.n_start, torch.full((20_000,), left), 16), rng)
        now = Clock(0, 4, s, now.n_start, now.n_left, 16)
        means.append(s.mean().item())
    assert means == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.006)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES.names()) - {"exponential", "truncated_normal"}))
def test_first_hitting_times_of_every_schedule_are_one_clock_read_differently(name: str) -> None:
    schedule = SCHEDULES.build(name)
    ratio = schedule.mask_ratio(One(schedule).next_time(clock(1.0, 4, 100), Rng.stream(0)))
    assert torch.allclose(ratio, One(Linear()).next_time(clock(1.0, 4, 100), Rng.stream(0)))


def test_one_needs_a_step_a_token_and_reveals_nothing_where_nothing_is_left() -> None:
    assert One().n_steps(8, 100) == 100
    left = Clock(0, 4, rows(0.5, 3), torch.tensor([4, 4, 0]), torch.tensor([4, 1, 0]), 16)
    counts = One().count(left, rows(0.4, 3), rows(0, 3), torch.zeros(3), Rng.stream(0))
    assert counts.tolist() == [1, 1, 0]
    assert One().next_time(left, Rng.stream(0)).isfinite().all()
