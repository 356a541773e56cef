"""Laws of the one masked decoding loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.samplers import MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.joint import Joint
from maskgen.samplers.masked.layout import Blocks, StreamsInTurn
from maskgen.samplers.masked.order import ORDERS, Confidence, Halton, Random
from maskgen.samplers.masked.remask import REMASKS, Cap, Remask, Rescale
from maskgen.samplers.masked.unmasking import UNMASKINGS, Bernoulli, One, Scheduled
from maskgen.schedules import SCHEDULES, Arccos, Cosine, Linear
from tests.toys import MASK, constant, frequencies, pick, posterior, waves

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_discrete.json").read_text())
TEXT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
N = 20_000
PAIR = torch.tensor([[0.40, 0.05, 0.05], [0.02, 0.08, 0.20], [0.10, 0.05, 0.05]], dtype=torch.float64)
TRIPLE = torch.tensor([[[0.30, 0.02], [0.03, 0.15]], [[0.05, 0.20], [0.20, 0.05]]], dtype=torch.float64)


def decode(
    sampler: MaskedSampler, x_1: Tensor, denoise: Callable[..., Categorical] = waves, mask_id: int = MASK, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """x_0 (B, L) and the number of masked tokens after each step (T, B)."""
    counts: list[Tensor] = []
    rng = Rng.per_sample(range(seed, seed + len(x_1)))
    on_step = lambda _done, _total, x_s: counts.append((x_s == mask_id).sum(1))  # noqa: E731
    return sampler(denoise, x_1, rng, mask_id=mask_id, on_step=on_step), torch.stack(counts)


def draw(sampler: MaskedSampler, joint: Tensor) -> Tensor:
    """Frequencies of N samples with the exact posterior of `joint` as denoiser."""
    mask_id = joint.shape[0]
    x_1 = torch.full((N, joint.ndim), mask_id)
    return frequencies(sampler(posterior(joint), x_1, Rng.stream(0), mask_id=mask_id), joint)


def assert_agree(observed: Tensor, expected: Tensor) -> None:
    """Within four standard errors everywhere."""
    assert ((observed - expected).abs() < 4 * (expected * (1 - expected) / N).sqrt()).all(), observed - expected


@pytest.mark.parametrize("order", ORDERS.names())
@pytest.mark.parametrize("name", ["cosine", "arccos", "linear"])
def test_masked_tokens_after_each_step_are_the_published_counts_in_any_order(name: str, order: str) -> None:
    unmasking = Scheduled(SCHEDULES.build(name))
    _, counts = decode(MaskedSampler(ORDERS.build(order), unmasking, steps=8), torch.full((2, 64), MASK))
    # The published list ends with a forced minimum of 1; ours with 0, as the last step reveals all.
    expected = [*GOLDEN["maskgit_mask_len"][f"{name}_N64_T8"][:-1], 0]
    assert counts[:, 0].tolist() == counts[:, 1].tolist() == expected


def test_maskgit_counts_on_256_tokens_in_8_steps() -> None:
    _, counts = decode(MaskedSampler(steps=8), torch.full((1, 256), MASK))
    assert counts[:, 0].tolist() == [251, 236, 212, 181, 142, 97, 49, 0]


@pytest.mark.parametrize("order", ORDERS.names())
def test_counts_are_exact_under_tied_confidences(order: str) -> None:
    sampler = MaskedSampler(ORDERS.build(order), steps=8, temperature=0)
    _, counts = decode(sampler, torch.full((3, 64), MASK), constant(MASK))
    assert (counts == Cosine().masked_counts(torch.full((3,), 64), 8)).all()


def test_counts_are_of_each_row_where_rows_have_different_holes() -> None:
    x_1 = torch.zeros(4, 64, dtype=torch.long)
    n = torch.tensor([0, 1, 20, 64])
    for row in range(4):
        x_1[row, torch.randperm(64, generator=torch.Generator().manual_seed(row))[: n[row]]] = MASK
    _, counts = decode(MaskedSampler(steps=8), x_1)
    assert torch.equal(counts, Cosine().masked_counts(n, 8))


@pytest.mark.parametrize("order", ORDERS.names())
@pytest.mark.parametrize(
    "unmasking", [Scheduled(Linear()), Scheduled(Cosine()), Scheduled(Arccos(), "revealed"), One()]
)
def test_as_many_steps_as_tokens_reveal_exactly_one_a_step(order: str, unmasking: Any) -> None:
    sampler = MaskedSampler(ORDERS.build(order), unmasking, steps=24, temperature=0)
    _, counts = decode(sampler, torch.full((2, 24), MASK))
    assert torch.equal(counts, torch.arange(23, -1, -1)[:, None].expand(24, 2))


def test_one_token_a_step_at_temperature_zero_is_greedy_decoding() -> None:
    x_0, _ = decode(MaskedSampler(Confidence(), Scheduled(Linear()), steps=9, temperature=0), torch.full((1, 9), MASK))
    x_t, time = torch.full((1, 9), MASK), 1.0
    for step in range(9):
        log_probs = waves(x_t, torch.tensor([time], dtype=torch.float64)).log_probs()[0]
        log_probs[x_t[0] != MASK] = -torch.inf
        place = int(log_probs.max(1).values.argmax())
        x_t[0, place] = log_probs[place].argmax()
        time = 1 - (step + 1) / 9
    assert torch.equal(x_0, x_t)


def test_a_single_step_draws_every_token_from_its_marginal() -> None:
    expected = PAIR.sum(1, keepdim=True) * PAIR.sum(0, keepdim=True)
    assert_agree(draw(MaskedSampler(steps=1), PAIR), expected)


def test_first_hitting_samples_the_joint_distribution_exactly() -> None:
    for joint in (PAIR, TRIPLE):
        assert_agree(draw(MaskedSampler(Random(), One()), joint), joint)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_ancestral_sampling_errs_only_where_two_tokens_are_revealed_at_once(schedule: Any) -> None:
    steps = 4
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    together = schedule.alpha(times).diff().square().sum()  # both tokens fall into the same step
    independent = PAIR.sum(1, keepdim=True) * PAIR.sum(0, keepdim=True)
    expected = (1 - together) * PAIR + together * independent
    observed = draw(MaskedSampler(Random(), Bernoulli(schedule), steps=steps), PAIR)
    assert_agree(observed, expected)
    assert_agree(observed.sum(0), PAIR.sum(0))
    assert_agree(observed.sum(1), PAIR.sum(1))


def test_ancestral_sampling_of_independent_tokens_is_exact_in_any_number_of_steps() -> None:
    first, second = PAIR.sum(0), PAIR.sum(1)
    joint = first[:, None] * second
    for steps in (1, 3, 10):
        assert_agree(draw(MaskedSampler(Random(), Bernoulli(), steps=steps), joint), joint)


@pytest.mark.parametrize("remask", [Cap(0.3), Rescale(0.5), Rescale(1.0)])
def test_remasking_keeps_the_marginals_of_every_step_and_of_the_tokens(remask: Remask) -> None:
    first = PAIR.sum(0)
    joint = first[:, None] * first
    sampler = MaskedSampler(Random(), Bernoulli(Linear()), remask, steps=8)
    masked: list[float] = []
    x_0 = sampler(
        posterior(joint),
        torch.full((N, 2), 3),
        Rng.stream(0),
        mask_id=3,
        on_step=lambda _done, _total, x_s: masked.append((x_s == 3).double().mean().item()),
    )
    assert masked == pytest.approx([1 - k / 8 for k in range(1, 9)], abs=0.012)
    assert_agree(frequencies(x_0, joint), joint)


def test_remasking_does_mask_tokens_again_and_counts_stay_scheduled() -> None:
    seen: list[Tensor] = []
    sampler = MaskedSampler(Random(), Scheduled(Cosine()), Rescale(0.5), steps=8)
    sampler(waves, torch.full((2, 64), MASK), Rng.stream(0), mask_id=MASK, on_step=lambda _d, _t, x_s: seen.append(x_s))
    states = torch.stack(seen) == MASK
    assert (~states[:-1] & states[1:]).any()
    assert torch.equal(states.sum(2), Cosine().masked_counts(torch.tensor([64, 64]), 8))


def test_blocks_are_finished_one_after_the_other() -> None:
    seen: list[Tensor] = []
    sampler = MaskedSampler(layout=Blocks(4), steps=6)
    sampler(waves, torch.full((2, 12), MASK), Rng.stream(0), mask_id=MASK, on_step=lambda _d, _t, x_s: seen.append(x_s))
    assert [(x_s == MASK)[0].view(3, 4).sum(1).tolist() for x_s in seen][1::2] == [[0, 4, 4], [0, 0, 4], [0, 0, 0]]


@pytest.mark.parametrize(("steps", "total"), [(10, 10), (11, 11), (12, 12), (2, 3)])
def test_blocks_share_all_the_steps_and_each_has_one(steps: int, total: int) -> None:
    _, counts = decode(MaskedSampler(layout=Blocks(4), steps=steps), torch.full((1, 12), MASK))
    assert len(counts) == total


@pytest.mark.parametrize("unmasking", UNMASKINGS.names())
@pytest.mark.parametrize("order", ORDERS.names())
def test_the_network_is_asked_only_about_masked_tokens_at_falling_times(order: str, unmasking: str) -> None:
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        assert where is not None
        asked.append((x_t, t, where))
        return waves(x_t, t, where=where)

    decode(MaskedSampler(ORDERS.build(order), UNMASKINGS.build(unmasking), steps=6), torch.full((3, 12), MASK), denoise)
    assert all((x_t[where] == MASK).all() for x_t, _, where in asked)
    assert all(where.any() for _, _, where in asked)
    assert asked[0][1].dtype == torch.float64
    for row in range(3):
        times = torch.stack([t[row] for _, t, where in asked if where[row].any()])
        assert (times <= 1).all()
        assert (times.diff() < 0).all()


def test_an_order_that_needs_no_prediction_asks_only_about_what_is_revealed() -> None:
    asked: list[int] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        asked.append(int(where.sum()))
        return waves(x_t, t, where=where)

    decode(MaskedSampler(Halton(), steps=4), torch.full((1, 12), MASK), denoise)
    assert sum(asked) == 12


@pytest.mark.parametrize("order", ORDERS.names())
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_may_be_bound_and_a_step_is_one_pass(order: str, scale: float) -> None:
    rows: list[int] = []

    def denoiser(x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None, where: Any = None) -> Categorical:
        rows.append(len(x_t))
        return waves(x_t, t.double(), where=where)

    denoise = Guidance(scale).bind(denoiser, Condition(torch.tensor([1, 2])))
    x_0, _ = decode(MaskedSampler(ORDERS.build(order), Scheduled(), steps=6), torch.full((2, 12), MASK), denoise)
    assert (x_0 != MASK).all()
    assert rows == [2 if scale == 1 else 4] * 6


@pytest.mark.parametrize("order", ORDERS.names())
def test_the_network_is_never_asked_about_nothing_and_the_stream_goes_on(order: str) -> None:
    sampler = MaskedSampler(ORDERS.build(order), Bernoulli(), steps=40)
    x_1 = torch.full((2, 12), MASK)
    x_1[0, 3:] = 0
    calls: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        calls.append(where.any(1))
        return waves(x_t, t, where=where)

    alone, _ = decode(sampler, x_1[:1], denoise)
    assert all(bool(rows.all()) for rows in calls)
    assert len(calls) <= 3
    together, _ = decode(sampler, x_1, denoise)
    assert torch.equal(together[:1], alone)


def test_a_decoding_stops_when_nothing_is_left() -> None:
    x_1 = torch.zeros(2, 12, dtype=torch.long)
    x_1[0, :3], x_1[1, 5] = MASK, MASK
    _, counts = decode(MaskedSampler(Random(), One()), x_1)
    assert counts.tolist() == [[2, 0], [1, 0], [0, 0]]
    assert len(decode(MaskedSampler(Random(), One(), layout=Blocks(4, start="row")), x_1)[1]) == 4
    assert len(decode(MaskedSampler(Random(), One(), layout=Blocks(4)), x_1)[1]) == 3


def test_a_decoding_that_may_mask_again_goes_on() -> None:
    x_1 = torch.zeros(1, 12, dtype=torch.long)
    x_1[0, 0] = MASK
    _, counts = decode(MaskedSampler(Random(), Bernoulli(), Rescale(0.9), steps=30), x_1)
    assert len(counts) == 30
    assert (counts.diff(dim=0) > 0).any()


def test_a_block_does_not_depend_on_how_long_the_one_before_took() -> None:
    x_1 = torch.full((1, 12), MASK)
    other = x_1.clone()
    other[0, 1:6] = 0
    sampler = MaskedSampler(Random(), layout=Blocks(6))

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        return waves(torch.zeros_like(x_t), t, where=where)  # the blocks are independent

    assert torch.equal(decode(sampler, x_1, denoise)[0][:, 6:], decode(sampler, other, denoise)[0][:, 6:])


def test_every_position_draws_tokens_of_its_own_stream() -> None:
    streams = TokenLayout((Stream("image", "image", 3, (2, 4)), Stream("label", "label", 2, (1,))))
    x_1 = torch.full((4, 9), streams.mask_id)
    uniform = lambda x_t, t, *, where=None: torch.zeros(*x_t.shape, 5)  # noqa: E731
    for unmasking in (Scheduled(), Bernoulli(), Joint()):
        sampler = MaskedSampler(Random(), unmasking, layout=StreamsInTurn(("label",)), steps=4)
        seen: list[Tensor] = []
        x_0 = sampler(
            uniform,
            x_1,
            Rng.per_sample(range(4)),
            mask_id=5,
            streams=streams,
            on_step=lambda _done, _total, x_s, seen=seen: seen.append(x_s),  # type: ignore[misc]
        )
        tokens = streams.split(x_0)
        assert ((tokens["image"] >= 0) & (tokens["image"] < 3)).all()
        assert ((tokens["label"] >= 0) & (tokens["label"] < 2)).all()
        n_before = next(index for index, x_s in enumerate(seen) if (x_s[:, :8] != 5).any())
        assert (seen[n_before][:, 8] != 5).all(), "the label is complete before the image begins"


def test_more_steps_than_tokens_are_said_and_take_one_token_each(caplog: pytest.LogCaptureFixture) -> None:
    _, counts = decode(MaskedSampler(steps=1_000_000), torch.full((1, 13), MASK))
    assert counts[:, 0].tolist() == list(range(12, -1, -1))
    assert caplog.messages == [
        "steps 1000000: more than one step per token changes nothing; 13 tokens take as many steps"
    ]


def test_a_single_block_has_the_stream_of_the_whole() -> None:
    x_1 = torch.full((3, 12), MASK)
    assert torch.equal(decode(MaskedSampler(layout=Blocks(12)), x_1)[0], decode(MaskedSampler(), x_1)[0])


def test_top_p_cuts_the_tail_after_temperature_and_only_from_the_draw() -> None:
    logits = torch.tensor(TEXT["top_p"]["p"], dtype=torch.float64).log().expand(1, 4000, 4)
    x_1 = torch.full((1, 4000), 4)

    def shares(**settings: Any) -> Tensor:
        sampler = MaskedSampler(Random(), steps=2, **settings)
        x_0 = sampler(lambda x_t, t, *, where=None: pick(logits, where), x_1, Rng.stream(0), mask_id=4)
        return torch.bincount(x_0[0], minlength=4).double() / 4000

    expected = torch.tensor(TEXT["top_p"]["inclusive"], dtype=torch.float64)
    for settings in ({"unmasking": Scheduled()}, {"unmasking": Joint()}):
        assert torch.allclose(shares(top_p=0.9, **settings), expected, atol=0.03)
        assert (shares(top_p=0.9, temperature=3.0, **settings) > 0.1).all()
        assert shares(top_p=0.9, temperature=0.0, **settings).tolist() == [1, 0, 0, 0]


def test_orders_see_what_top_p_cuts() -> None:
    seen: list[Tensor] = []

    class Watching(Confidence):
        def certainty(self, prediction: Categorical, tokens: Tensor) -> Tensor:
            seen.append(prediction.logits)
            return super().certainty(prediction, tokens)

    decode(MaskedSampler(Watching(), top_p=0.5), torch.full((1, 12), MASK))
    assert all(logits.isfinite().all() for logits in seen)


@pytest.mark.parametrize("remask", sorted(set(REMASKS.names()) - {"none"}))
def test_joint_draws_and_remasking_are_refused_together(remask: str) -> None:
    with pytest.raises(ValueError, match="unmasking joint cannot mask tokens again; use remask none"):
        MaskedSampler(unmasking=Joint(), remask=REMASKS.build(remask))


@pytest.mark.parametrize("top_p", [0.0, 1.1, float("nan")])
def test_an_impossible_top_p_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\]"):
        MaskedSampler(top_p=top_p)


@pytest.mark.parametrize(("arguments", "message"), [({"steps": 0}, "steps"), ({"temperature": -1.0}, "temperature")])
def test_an_impossible_setting_is_refused_by_name(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        MaskedSampler(**arguments)
