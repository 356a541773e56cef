"""Generation with masked language models: few masks at the end, and the likeliest tokens only."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.masked.horizon import Horizon
from tests.toys import MASK, waves

PROMPT = torch.tensor([[3, 1], [0, 4]])
X_1 = torch.cat([PROMPT, torch.full((2, 6), MASK)], 1)


class Seen:
    """`waves`, which remembers the lengths of the rows."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        self.lengths.append(x_t.shape[1])
        return waves(x_t, torch.zeros_like(t), where=where)


def sampler(**keys: object) -> MaskedSampler:
    found = SAMPLERS.build({"type": "masked_lm", "temperature": 0.0, **keys})
    assert isinstance(found, MaskedSampler)
    return found


@pytest.mark.parametrize("masks", [1, 2, 4])
def test_each_token_is_the_likeliest_at_the_first_of_a_few_masks(masks: int) -> None:
    seen = Seen()
    found = sampler(masks=masks)(seen, X_1, Rng.per_sample([0, 1]), mask_id=MASK)
    for row, prompt in zip(found, PROMPT, strict=True):
        text = prompt
        for place in range(2, 8):
            n = min(masks, 8 - place)
            given = torch.cat([text, torch.full((n,), MASK)])[None]
            logits = waves(given, torch.zeros(1)).logits
            text = torch.cat([text, logits[0, place].argmax()[None]])
        assert torch.equal(row, text)
    assert seen.lengths == [min(place + masks, 8) for place in range(2, 8)]


def test_masks_to_the_end_of_the_row_are_the_autoregressive_sampler() -> None:
    other = SAMPLERS.build({"type": "autoregressive", "temperature": 1.0})
    samples = [
        one(Seen(), X_1, Rng.per_sample([5, 6]), mask_id=MASK) for one in (sampler(masks=8, temperature=1.0), other)
    ]
    assert torch.equal(*samples)


def test_a_row_with_known_tokens_to_the_right_is_seen_whole_and_the_others_are_not() -> None:
    x_1 = X_1.clone()
    x_1[1, 7] = 2
    both = sampler(masks=2)(seen := Seen(), x_1, Rng.per_sample([0, 1]), mask_id=MASK)
    alone = [sampler(masks=2)(Seen(), x_1[i : i + 1], Rng.per_sample([i]), mask_id=MASK) for i in (0, 1)]
    assert torch.equal(both, torch.cat(alone))
    assert set(seen.lengths[:2]) == {4, 8}


def test_positions_asked_for_are_never_cut_off() -> None:
    horizon = Horizon(Seen(), torch.tensor([2, 2]), MASK)
    whole = horizon(X_1, torch.zeros(2))
    assert torch.equal(whole.logits, waves(X_1, torch.zeros(2)).logits.flatten(0, 1))


def test_no_token_beyond_the_likeliest_is_drawn() -> None:
    logits = torch.tensor([0.3, 0.1, 0.9, 0.5, 0.2])
    prediction = Categorical(logits.expand(400, 1, -1))
    drawn = prediction.likeliest(2).sample(Rng.stream(0))
    assert set(drawn.flatten().tolist()) == {2, 3}
    share = float((drawn == 2).double().mean())
    assert abs(share - float(torch.softmax(logits[[2, 3]], 0)[0])) < 0.1
    assert prediction.likeliest(0) is prediction
    assert prediction.likeliest(5) is prediction


@pytest.mark.parametrize("keys", [{"masks": 0}, {"top_k": -1}])
def test_counts_out_of_range_are_refused(keys: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        sampler(**keys)


def likeliest(prompt: list[int], n: int, masks: int) -> list[int]:
    """The continuation of the highest sum of log-probabilities, by trying all."""

    def score(text: tuple[int, ...]) -> float:
        total, row = 0.0, list(prompt)
        for index, token in enumerate(text):
            given = torch.tensor([[*row, *[MASK] * min(masks, n - index)]])
            total += float(waves(given, torch.zeros(1)).log_probs()[0, len(row), token])
            row.append(token)
        return total

    return max((list(text) for text in product(range(MASK), repeat=n)), key=lambda text: score(tuple(text)))


def test_a_beam_of_all_texts_finds_the_likeliest() -> None:
    x_1 = torch.tensor([[3, 1, MASK, MASK, MASK], [0, MASK, MASK, MASK, 2]])
    found = sampler(temperature=1.0, masks=2, beam=MASK**2)(Seen(), x_1[:1], Rng.per_sample([0]), mask_id=MASK)
    assert found[0].tolist() == [3, 1, *likeliest([3, 1], 3, 2)]
    together = sampler(temperature=1.0, masks=2, beam=7)(Seen(), x_1, Rng.per_sample([0, 1]), mask_id=MASK)
    for row in range(2):
        alone = sampler(temperature=1.0, masks=2, beam=7)(Seen(), x_1[[row]], Rng.per_sample([row]), mask_id=MASK)
        assert torch.equal(together[[row]], alone)
    assert torch.equal(together[x_1 != MASK], x_1[x_1 != MASK])


def test_a_wider_beam_finds_no_less_likely_text_than_the_greedy_one_here() -> None:
    def log_prob(row: Tensor) -> float:
        total = 0.0
        for place in range(2, 8):
            given = torch.cat([row[:place], torch.full((min(3, 8 - place),), MASK)])[None]
            total += float(waves(given, torch.zeros(1)).log_probs()[0, place, row[place]])
        return total

    rng = Rng.per_sample([0, 1])
    greedy, beam = (one(Seen(), X_1, rng, mask_id=MASK) for one in (sampler(), sampler(temperature=1.0, beam=4)))
    assert all(log_prob(b) >= log_prob(a) for a, b in zip(greedy, beam, strict=True))


def test_a_beam_keeps_a_text_that_has_ended() -> None:
    def one_of_two(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        """Token 0 with chance 0.6 or the end 1 with 0.4, then tokens 0, 2 and 3 alike."""
        logits = torch.tensor([[0.6, 0.4, 0, 0], *[[1 / 3, 0, 1 / 3, 1 / 3]] * 3]).log()[: x_t.shape[1]]
        logits = logits.expand(len(x_t), -1, -1)
        return Categorical(logits if where is None else logits[where], where)

    streams = TokenLayout.of(Stream("text", "text", 4, (4,), stop=(1,)))
    x_1 = torch.full((1, 4), 4)
    rng = Rng.per_sample([0])
    found = sampler(temperature=1.0, beam=2)(one_of_two, x_1, rng, mask_id=4, streams=streams)
    assert found.tolist() == [[1, 1, 1, 1]]
    assert sampler()(one_of_two, x_1, rng, mask_id=4, streams=streams)[0, 0] == 0


@pytest.mark.parametrize("keys", [{"beam": 0}, {"beam": 2}, {"beam": 2, "temperature": 1.0, "top_k": 3}])
def test_a_beam_does_not_go_with_what_narrows_draws(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="beam must be at least 1"):
        sampler(**keys)
