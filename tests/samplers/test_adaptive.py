"""Laws of the unmasking schedules that look at the prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers import MaskedSampler
from maskgen.samplers.masked.adaptive import Adaptive, EntropyBound, Factor, Threshold
from maskgen.samplers.masked.layout import Blocks
from maskgen.samplers.masked.order import Confidence, Entropy, Proposal, Random
from maskgen.samplers.masked.unmasking import Clock, Move
from tests.toys import MASK, constant, pick, waves

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
CONFIDENCE = torch.tensor(GOLDEN["threshold"]["conf"], dtype=torch.float64)


def count(unmasking: Adaptive, logits: Tensor, tokens: Tensor | None = None) -> int:
    """Tokens revealed of the candidates (M, V), which stand in disorder among others that are none."""
    where = torch.zeros(1, 2 * len(logits), dtype=torch.bool)
    where[:, 1::2] = True
    tokens = logits.argmax(-1) if tokens is None else tokens
    prediction = Categorical(logits, where)
    proposal = Proposal(where, 0, 2, (where.shape[1],), prediction, prediction, tokens)
    n = torch.tensor([len(logits)])
    zero = torch.zeros(1, dtype=torch.float64)
    move = Move(Clock(0, 9, zero + 1, n, n, where.shape[1]), zero, zero, torch.zeros_like(n), proposal)
    return int(unmasking.count(move, Rng.stream(0)))


def sure_by(confidence: Tensor) -> Tensor:
    """(M, 2) logits whose first token has this probability, shuffled."""
    p = confidence[torch.tensor([3, 0, 4, 2, 1])]
    return torch.stack([p, 1 - p], -1).log()


@pytest.mark.parametrize(("tau", "n"), GOLDEN["threshold"]["tau"].items())
def test_threshold_reveals_what_fast_dllm_reveals(tau: str, n: int) -> None:
    assert count(Threshold(float(tau)), sure_by(CONFIDENCE), torch.zeros(5, dtype=torch.long)) == n


@pytest.mark.parametrize(("f", "n"), GOLDEN["threshold"]["factor"].items())
def test_factor_reveals_what_fast_dllm_reveals(f: str, n: int) -> None:
    assert count(Factor(float(f)), sure_by(CONFIDENCE), torch.zeros(5, dtype=torch.long)) == n


def test_the_thresholds_of_a_factor_are_one_minus_f_by_n_plus_one() -> None:
    for n in range(1, 5):
        f = (n + 1) * (1 - CONFIDENCE[n - 1].item())
        just = [
            count(Factor(f + nudge), sure_by(CONFIDENCE), torch.zeros(5, dtype=torch.long)) for nudge in (-1e-6, 1e-6)
        ]
        assert just == [max(n - 1, 1), n]


def test_entropy_bound_takes_the_longest_run_that_is_free_but_for_its_last() -> None:
    entropy = GOLDEN["entropy_bound"]["H"]
    low, high = torch.full((5,), -40.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    target = torch.tensor(entropy, dtype=torch.float64)[torch.tensor([4, 1, 3, 0, 2])]
    for _ in range(60):  # logits (x, 0, 0) of the entropy wanted, by bisection
        middle = (low + high) / 2
        is_low = Categorical(torch.stack([torch.zeros(5), middle, middle], -1)).entropy() < target
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    logits = torch.stack([torch.zeros(5), low, low], -1)
    assert Categorical(logits).entropy().tolist() == pytest.approx(target.tolist())
    assert count(EntropyBound(GOLDEN["entropy_bound"]["gamma"]), logits) == GOLDEN["entropy_bound"]["accept"]
    assert [count(EntropyBound(gamma), logits) for gamma in (0.0, 0.03, 0.3, 9.0)] == [1, 2, 4, 5]


@pytest.mark.parametrize("unmasking", [Threshold(1.0), Factor(1e-6), EntropyBound(0.0)])
@pytest.mark.parametrize("order", [Confidence(), Entropy(), Random()])
def test_the_unsure_reveal_one_token_a_step(unmasking: Adaptive, order: Any) -> None:
    steps: list[int] = []
    x_1 = torch.full((2, 12), MASK)
    MaskedSampler(order, unmasking)(
        constant(MASK),
        x_1,
        Rng.stream(0),
        mask_id=MASK,
        on_step=lambda _d, _t, x_s: steps.append(int((x_s != MASK).sum())),
    )
    assert steps == list(range(2, 25, 2))


@pytest.mark.parametrize("unmasking", [Threshold(0.9), Factor(1.0), EntropyBound(0.1)])
def test_the_sure_reveal_all_at_once(unmasking: Adaptive) -> None:
    seen: list[Tensor] = []
    certain = torch.tensor([0.0, 50.0, 0.0]).expand(2, 12, 3)
    x_0 = MaskedSampler(Confidence(), unmasking)(
        lambda x_t, t, *, where=None: pick(certain, where),
        torch.full((2, 12), 3),
        Rng.stream(0),
        mask_id=3,
        on_step=lambda _d, _t, x_s: seen.append(x_s),
    )
    assert len(seen) == 1
    assert (x_0 == 1).all()


@pytest.mark.parametrize("unmasking", [Threshold(0.5), Factor(1.0), EntropyBound(1.0)])
@pytest.mark.parametrize("layout", [Blocks(4, start="row"), Blocks(12)])
def test_time_is_the_share_of_a_row_that_is_still_masked(unmasking: Adaptive, layout: Blocks) -> None:
    x_1 = torch.full((3, 12), MASK)
    x_1[1, [0, 3, 5, 6]] = 2
    n_calls = 0

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        nonlocal n_calls
        assert where is not None
        n_calls += 1
        block = torch.zeros_like(where)
        start = int(where.any(0).nonzero()[0]) // layout.block_length * layout.block_length
        block[:, start : start + layout.block_length] = True
        expected = (block & (x_t == MASK)).sum(1) / (block & (x_1 == MASK)).sum(1)
        assert torch.allclose(t.float(), expected)
        return waves(x_t, t, where=where)

    MaskedSampler(Confidence(), unmasking, layout=layout, temperature=0)(denoise, x_1, Rng.stream(0), mask_id=MASK)
    assert n_calls > 1


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [(Threshold, 0.0, "tau"), (Threshold, 1.1, "tau"), (Factor, 0.0, "f"), (EntropyBound, -1.0, "gamma")],
)
def test_an_impossible_setting_is_refused_by_name(make: Any, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message} must be .*, got {value}"):
        make(value)
