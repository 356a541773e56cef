"""Laws of the strategies that ask the network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.strategies import Attention, Guide, Hard, MaskStrategy

GRID, LENGTH, N = (4, 5), 20, 3000
RISING = torch.arange(LENGTH).double().expand(N, -1)  # the last token is attended to most, and hardest


def share(strategy: MaskStrategy, ratio: float, progress: float = 0.0) -> torch.Tensor:
    """How often each token is masked."""
    return strategy.mask(ratio, N, GRID, Rng.stream(0), Guide(RISING, progress)).double().mean(0)


def test_the_most_attended_tokens_are_masked_first() -> None:
    assert share(Attention(hints=0.0), 0.3).tolist() == [0.0] * 14 + [1.0] * 6


def test_hints_are_drawn_from_the_most_attended_and_stay_to_the_end() -> None:
    hinting = Attention(hints=0.1, among=0.2)  # 2 of the 4 most attended
    found = share(hinting, 0.4)  # 8 tokens: 2 of the first 4, and the 6 after them
    assert found[:10].tolist() == [0.0] * 10
    assert found[10:16].tolist() == [1.0] * 6
    assert found[16:].tolist() == pytest.approx([0.5] * 4, abs=0.03)
    assert share(hinting, 0.9)[:16].tolist() == [1.0] * 16


def test_hard_begins_at_random_and_masks_the_hardest_more_and_more() -> None:
    assert share(Hard(), 0.5, progress=0.0).tolist() == pytest.approx([0.5] * LENGTH, abs=0.03)
    shares = [share(Hard(), 0.5, progress)[-5:].mean().item() for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(later > earlier + 0.03 for earlier, later in pairwise(shares))


@pytest.mark.parametrize("n", [50, 100, 150, 180])
@pytest.mark.parametrize("progress", [0.4, 1.0])
def test_of_any_number_of_masked_tokens_a_share_is_the_hardest_and_the_rest_uniform(n: int, progress: float) -> None:
    length, strategy = 200, Hard()
    rising = torch.arange(length).double().expand(N, -1)
    found = strategy.mask(n / length, N, (10, 20), Rng.stream(0), Guide(rising, progress)).double().mean(0).flip(0)
    n_hardest = n * strategy.share(progress)
    edge = 12  # how far the count of the random ones moves that of the hardest
    rest = (n - n_hardest) / (length - n_hardest)
    assert (found[: max(int(n_hardest) - edge, 1)] > 0.97).all()
    assert found[int(n_hardest) + edge :].mean().item() == pytest.approx(rest, abs=0.02)
    assert found[int(n_hardest) + edge :].std() < 0.03


def test_the_guided_share_goes_linearly_from_start_to_end() -> None:
    strategy = Hard(start=0.2, end=0.8)
    assert [strategy.share(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.5, 0.8])
    assert share(Hard(1.0, 1.0), 0.25).tolist() == [0.0] * 15 + [1.0] * 5


@pytest.mark.parametrize("strategy", [Attention(), Hard()])
def test_without_the_networks_answer_there_is_no_mask(strategy: MaskStrategy) -> None:
    with pytest.raises(ValueError, match="requires scores of the network; pass them as guide"):
        strategy.scores(2, GRID, Rng.stream(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(hints=0.2, among=0.1), r"hints must be at most among \(0.1\), .*, got 0.2"),
        (lambda: Attention(hints=-0.1), r"hints must be in \[0, 1\], got -0.1"),
        (lambda: Hard(end=1.5), r"end must be in \[0, 1\], got 1.5"),
        (lambda: Hard(start=-1.0), r"start must be in \[0, 1\], got -1.0"),
    ],
)
def test_a_share_without_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
