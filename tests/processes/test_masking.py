"""Laws of the processes that mask."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, cast, get_args

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.processes import PROCESSES, Absorbing, StateDependent, is_mask
from maskgen.schedules import SCHEDULES, Cosine, Fixed, Linear
from maskgen.strategies import STRATEGIES, Guide

x_0 = torch.arange(64).view(4, 16) % 7
SQUARE = TokenLayout.of(Stream("image", "image", 7, (4, 4)))
every_count = pytest.mark.parametrize("count", ["bernoulli", "exact"])


@every_count
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_token_is_kept_or_masked_and_nothing_else(name: str, count: Any) -> None:
    process = Absorbing(7, SCHEDULES.build(name), count)
    x_t = process.corrupt(x_0, torch.tensor([0.1, 0.4, 0.7, 1.0]), process.draw_noise(x_0, Rng.stream(0)))
    assert ((x_t == x_0) | (x_t == 7)).all()
    assert x_t.dtype == torch.int64


@every_count
def test_corruption_is_a_pure_function_of_its_noise(count: Any) -> None:
    process = Absorbing(7, Linear(), count)
    noise, t, before = process.draw_noise(x_0, Rng.stream(0)), torch.full((4,), 0.5), x_0.clone()
    assert torch.equal(process.corrupt(x_0, t, noise), process.corrupt(x_0, t, noise))
    assert torch.equal(x_0, before)


@every_count
def test_with_the_same_noise_a_masked_token_stays_masked_as_time_goes_on(count: Any) -> None:
    process = Absorbing(7, Cosine(), count)
    noise = process.draw_noise(x_0, Rng.stream(0))
    masked = [process.corrupt(x_0, torch.full((4,), t), noise) == 7 for t in (0.1, 0.3, 0.6, 0.9)]
    for earlier, later in pairwise(masked):
        assert (later | ~earlier).all()


@pytest.mark.parametrize(("t", "n"), [(0.0, 1), (0.25, 4), (0.5, 8), (0.97, 16), (1.0, 16)])
def test_exact_counts_are_exact_under_tied_noise_and_never_zero(t: float, n: int) -> None:
    x_t = Absorbing(7, Linear(), "exact").corrupt(x_0, torch.full((4,), t), torch.full((4, 16), 0.5))
    assert ((x_t == 7).sum(1) == n).all()


def test_each_row_has_its_own_time() -> None:
    process = Absorbing(7, Linear(), "exact")
    x_t = process.corrupt(x_0, torch.tensor([0.25, 0.5, 0.75, 1.0]), process.draw_noise(x_0, Rng.stream(0)))
    assert (x_t == 7).sum(1).tolist() == [4, 8, 12, 16]


def test_bernoulli_masks_nothing_at_time_zero_everything_at_one_and_the_ratio_between() -> None:
    process, many = Absorbing(7, Cosine(), "bernoulli"), torch.zeros(3, 20_000, dtype=torch.long)
    t = torch.tensor([0.0, 0.4, 1.0])
    share = (process.corrupt(many, t, process.draw_noise(many, Rng.stream(0))) == 7).double().mean(1)
    assert share.tolist() == pytest.approx(Cosine().mask_ratio(t).tolist(), abs=0.01)
    assert share[0] == 0
    assert share[2] == 1


def test_the_prior_is_all_mask() -> None:
    assert (Absorbing(7).prior((2, 5), Rng.stream(0)) == 7).all()


def test_the_vocabulary_size_is_derived_and_not_a_key() -> None:
    process = PROCESSES.build({"type": "absorbing", "schedule": "linear"}, layout=9)
    assert isinstance(process, Absorbing)
    assert process.mask_id == 9
    assert PROCESSES.arguments("absorbing") == ["schedule", "count", "strategy", "at_least", "rounding"]


def test_times_may_be_given_token_by_token() -> None:
    process = Absorbing(7, Cosine(), "bernoulli")
    noise, t = process.draw_noise(x_0, Rng.stream(0)), torch.linspace(0, 1, 64).view(4, 16)
    one_by_one = [process.corrupt(x_0, t[:, place], noise)[:, place] for place in range(16)]
    assert torch.equal(process.corrupt(x_0, t, noise), torch.stack(one_by_one, 1))
    rows = torch.tensor([0.2, 0.4, 0.6, 0.8])
    assert torch.equal(process.corrupt(x_0, rows, noise), process.corrupt(x_0, rows[:, None].expand(4, 16), noise))


# Strategies


def test_random_masks_are_those_of_plain_uniform_noise() -> None:
    for count in get_args(Literal["bernoulli", "exact"]):
        noise = Absorbing(7, Linear(), count).draw_noise(x_0, Rng.stream(0))
        assert torch.equal(noise, Rng.stream(0).uniform((4, 16)))


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_masks_exact_counts_at_every_time(name: str) -> None:
    process = PROCESSES.build({"type": "absorbing", "schedule": "linear", "strategy": name}, layout=SQUARE)
    noise = cast(Absorbing, process).draw_noise(x_0, Rng.stream(0), Guide(torch.randn(4, 16)))
    x_t = process.corrupt(x_0, torch.tensor([0.25, 0.5, 0.75, 1.0]), noise)
    assert (x_t == 7).sum(1).tolist() == [4, 8, 12, 16]
    assert ((x_t == x_0) | (x_t == 7)).all()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_masks_as_many_as_coins_would_on_average(name: str) -> None:
    many = torch.zeros(3000, 16, dtype=torch.long)
    process = Absorbing(SQUARE, Linear(), "bernoulli", STRATEGIES.build(name))
    noise = process.draw_noise(many, Rng.stream(0), Guide(Rng.stream(1).normal((3000, 16))))
    counts = (process.corrupt(many, torch.full((3000,), 0.3), noise) == 7).sum(1).double()
    assert counts.mean().item() == pytest.approx(4.8, abs=0.12)
    assert name == "random" or set(counts.tolist()) == {4.0, 5.0}


def test_a_strategy_knows_the_grid_and_takes_a_text_for_one_line() -> None:
    blocks, one = STRATEGIES.build({"type": "grid", "period": [2, 2]}), torch.full((4,), 0.75)
    on_grid, on_line = (Absorbing(layout, Linear(), "exact", blocks) for layout in (SQUARE, 7))
    seen = on_grid.corrupt(x_0, one, on_grid.draw_noise(x_0, Rng.stream(0))).view(4, 2, 2, 2, 2) != 7
    assert (seen.sum((2, 4)) == 1).all()
    seen = on_line.corrupt(x_0, one - 0.25, on_line.draw_noise(x_0, Rng.stream(0))).view(4, 8, 2) != 7
    assert (seen == seen[:, :1]).all()


def test_rows_of_another_length_than_the_grid_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"built for rows of 9 tokens \(image \(3, 3\)\), got 16; build it for the layout"
    ):
        Absorbing(TokenLayout.of(Stream("image", "image", 7, (3, 3)))).draw_noise(x_0, Rng.stream(0))


# Rows of several streams

BOTH = TokenLayout.of(
    Stream("image", "image", 7, (4, 4)), Stream("label", "label", 3, (1,)), Stream("words", "text", 5, (6,))
)
rows = BOTH.join({"image": x_0, "label": torch.tensor([[0], [1], [2], [0]]), "words": torch.arange(24).view(4, 6) % 5})


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_stream_has_exact_counts_and_an_order_of_its_own(name: str) -> None:
    process = Absorbing(BOTH, Linear(), strategy=STRATEGIES.build(name))
    noise = process.draw_noise(rows, Rng.stream(0), Guide(torch.randn(4, 23)))
    t = torch.tensor([[0.25, 0.1, 0.5], [0.5, 0.9, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    for times, n in ((t, [[4, 0, 3], [8, 1, 0], [16, 0, 0], [0, 1, 6]]), (torch.full((4,), 0.5), [[8, 0, 3]] * 4)):
        x_t = process.corrupt(rows, times, noise)
        assert [[int((x_t[row, place] == 15).sum()) for place in BOTH.places] for row in range(4)] == n
        assert ((x_t == rows) | (x_t == 15)).all()
    assert ((process.corrupt(rows, torch.zeros(4), noise) == 15).sum(1) == 1).all(), "at least one of the row"
    image = Absorbing(SQUARE, Linear(), strategy=STRATEGIES.build(name))
    alone = image.draw_noise(x_0, Rng.stream(0), Guide(torch.randn(4, 16)))
    assert name in ("attention", "hard") or noise[:, :16].equal(alone)


def test_coins_of_streams_fall_at_times_of_their_own() -> None:
    process, many = Absorbing(BOTH, Linear(), "bernoulli"), rows[:1].expand(4000, -1)
    t = torch.tensor([[0.2, 0.7, 1.0]]).expand(4000, -1)
    is_masked = (process.corrupt(many, t, process.draw_noise(many, Rng.stream(0))) == 15).double()
    shares = [is_masked[:, place].mean().item() for place in BOTH.places]
    assert shares == pytest.approx([0.2, 0.7, 1.0], abs=0.03)
    shared = process.corrupt(many, t[:, 0], process.draw_noise(many, Rng.stream(0)))
    assert (shared == 15).double().mean().item() == pytest.approx(0.2, abs=0.01)


def test_fixed_counts_of_streams_are_known_without_counting() -> None:
    for ratio, least, rounding in ((0.75, 0, "round"), (0.01, 3, "floor"), (0.3, 0, "ceil"), (0.3, 0, "floor")):
        process = Absorbing(BOTH, Fixed(ratio), at_least=least, rounding=cast(Any, rounding))
        x_t = process.corrupt(rows, torch.ones(4), process.draw_noise(rows, Rng.stream(0)))
        assert ((x_t == 15).sum(1) == process.n_masked(23)).all()


@pytest.mark.parametrize(
    ("rounding", "n"), [("round", [1, 4, 7, 12]), ("ceil", [1, 4, 8, 12]), ("floor", [1, 4, 7, 11])]
)
def test_masked_counts_are_rounded_as_the_key_says(rounding: Any, n: list[int]) -> None:
    process = Absorbing(7, Linear(), rounding=rounding)
    t = torch.tensor([0.01, 0.25, 0.46, 0.72], dtype=torch.float64)
    assert (process.corrupt(x_0, t, process.draw_noise(x_0, Rng.stream(0))) == 7).sum(1).tolist() == n
    whole = torch.full((4,), 0.7 - 0.2, dtype=torch.float64)  # 16 * 0.49999999999999994 are 8 tokens
    assert ((process.corrupt(x_0, whole, process.draw_noise(x_0, Rng.stream(0))) == 7).sum(1) == 8).all()


def test_what_supports_one_stream_says_so_of_several() -> None:
    with pytest.raises(
        ValueError, match="process state_dependent supports rows of one stream, got image, label, words"
    ):
        StateDependent(BOTH)
    with pytest.raises(ValueError, match="rounding ceil needs count exact, got bernoulli"):
        Absorbing(7, Linear(), "bernoulli", rounding="ceil")


# Rates of the tokens' own


def test_a_token_is_masked_with_its_own_power_of_the_time() -> None:
    process, w = StateDependent(3), torch.tensor([0.5, 1.0, 4.0])
    many = torch.arange(3).repeat_interleave(40_000).expand(4, -1)
    t = torch.tensor([0.0, 0.25, 0.7, 1.0])
    x_t = process.corrupt(many, t, process.draw_noise(many, Rng.stream(0)), w)
    share = (x_t == 3).double().view(4, 3, -1).mean(2)
    torch.testing.assert_close(share, t.double()[:, None] ** w.double(), atol=0.01, rtol=0)
    assert torch.equal(x_t[x_t < 3], many[x_t < 3])
    assert not share[0].any()
    assert bool((share[3] == 1).all())


@pytest.mark.parametrize("exponents", [None, torch.ones(7)])
def test_rates_of_one_are_the_linear_schedule(exponents: torch.Tensor | None) -> None:
    t, linear = torch.tensor([0.1, 0.4, 0.7, 1.0]), Absorbing(7, Linear(), "bernoulli")
    noise = linear.draw_noise(x_0, Rng.stream(0))
    assert torch.equal(StateDependent(7).corrupt(x_0, t, noise, exponents), linear.corrupt(x_0, t, noise))


def test_masked_tokens_of_any_rates_stay_masked_as_time_goes_on() -> None:
    process, w = StateDependent(7), torch.linspace(0.1, 5, 7)
    noise = process.draw_noise(x_0, Rng.stream(0))
    masked = [process.corrupt(x_0, torch.full((4,), t), noise, w) == 7 for t in (0.1, 0.3, 0.6, 0.9)]
    for earlier, later in pairwise(masked):
        assert (later | ~earlier).all()
        assert (later & ~earlier).any()


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1])
def test_a_least_time_that_is_none_is_refused(t_min: float) -> None:
    with pytest.raises(ValueError, match=rf"t_min must be in \(0, 1\), got {t_min}"):
        StateDependent(7, t_min)


def test_learned_rates_are_no_keys() -> None:
    process = PROCESSES.build({"type": "state_dependent", "t_min": 0.01}, layout=9)
    assert isinstance(process, StateDependent)
    assert (process.mask_id, process.t_min) == (9, 0.01)
    assert PROCESSES.arguments("state_dependent") == ["t_min"]
    assert (process.prior((2, 5), Rng.stream(0)) == 9).all()


def test_vectors_are_masked_whole_by_nan_and_otherwise_untouched() -> None:
    vectors, process = torch.randn(4, 16, 3), Absorbing(0, Linear(), "exact")
    noise = process.draw_noise(vectors, Rng.stream(0))
    x_t = process.corrupt(vectors, torch.full((4,), 0.25), noise)
    is_masked = is_mask(x_t, 0)
    assert noise.shape == (4, 16)
    assert (is_masked.sum(1) == 4).all()
    assert x_t[is_masked].isnan().all()
    assert torch.equal(x_t[~is_masked], vectors[~is_masked])
    assert is_mask(process.prior((4, 16, 3), Rng.stream(0)), 0).all()


@every_count
def test_at_least_so_many_are_masked_in_every_row(count: Any) -> None:
    x_0, t = torch.zeros(64, 9, dtype=torch.long), torch.full((64,), 0.01)
    for least in (0, 2, 20):
        process = Absorbing(5, Linear(), count, at_least=least)
        n = (process.corrupt(x_0, t, process.draw_noise(x_0, Rng.stream(0))) == 5).sum(1)
        assert n.min() == max(min(least, 9), int(count == "exact"))
        assert n.float().mean() <= max(least, 1), "and no more for it"


def test_fewer_than_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at_least"):
        Absorbing(5, at_least=-1)
