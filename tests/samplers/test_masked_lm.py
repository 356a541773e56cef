"""Generation with masked language models: few masks at the end, and the likeliest tokens only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
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
