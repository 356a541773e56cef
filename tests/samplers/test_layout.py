"""Laws of the layouts and of the steps of their blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.streams import Stream, TokenLayout
from maskgen.samplers.masked.layout import LAYOUTS, Blocks, Full, StreamsInTurn
from maskgen.samplers.masked.spans import spans
from maskgen.samplers.masked.unmasking import Bernoulli, Even, One, Unmasking


def prompted(*n_known: int, length: int) -> Tensor:
    """(B, L) bool, open after so many known tokens."""
    return torch.arange(length) >= torch.tensor(n_known)[:, None]


def test_every_layout_decodes_every_open_position_once() -> None:
    for name in LAYOUTS.names():
        for length in (1, 7, 32, 33, 100):
            is_open = prompted(0, length // 2, length, length=length)
            found = [span.is_open for span in spans(LAYOUTS.build(name), Even(), 8, is_open)]
            assert torch.equal(torch.stack(found).sum(0), is_open.long()), (name, length)


def test_blocks_start_at_the_first_open_token_of_each_row() -> None:
    is_open = prompted(20, 64, length=84)
    blocks = Blocks(32).blocks(is_open)
    assert [blocks[0].tolist().index(block) for block in (0, 1)] == [20, 52]
    assert blocks[1].tolist().index(0) == 64
    assert Blocks(32, start="row").blocks(is_open)[0].tolist() == [place // 32 for place in range(84)]


def plan(unmasking: Unmasking, steps: int, is_open: Tensor, layout: Blocks) -> list[tuple[int, list[int]]]:
    """Steps of each span, and its rows."""
    return [
        (span.n_steps, span.is_open.any(1).nonzero()[:, 0].tolist())
        for span in spans(layout, unmasking, steps, is_open)
    ]


def test_steps_are_shared_by_the_blocks_that_have_open_tokens() -> None:
    is_open = prompted(64, length=128)
    assert plan(Even(), 64, is_open, Blocks(32)) == [(32, [0]), (32, [0])]
    assert plan(Even(), 64, is_open, Blocks(32, start="row")) == [(32, [0]), (32, [0])]
    gap = torch.zeros(1, 128, dtype=torch.bool)
    gap[0, [0, 70, 127]] = True
    assert plan(Even(), 10, gap, Blocks(32)) == [(4, [0]), (3, [0]), (3, [0])]


def test_rows_of_the_same_steps_are_decoded_together_and_others_after_them() -> None:
    is_open = prompted(0, 30, 0, 64, length=64)
    assert plan(Bernoulli(), 8, is_open, Blocks(32)) == [(4, [0, 1, 2]), (4, [0, 1, 2])]
    shorter = prompted(0, 40, length=64)
    assert plan(Bernoulli(), 8, shorter, Blocks(32)) == [(8, [1]), (4, [0]), (4, [0])]
    assert plan(One(), 8, shorter, Blocks(32)) == [(32, [0, 1]), (32, [0])]


def test_streams_are_decoded_together_or_in_turn() -> None:
    streams = TokenLayout((Stream("image", "image", 5, (2, 2)), Stream("label", "label", 3, (1,))))
    is_open = torch.ones(2, 5, dtype=torch.bool)
    assert StreamsInTurn(("label",)).blocks(is_open, streams).tolist() == [[1, 1, 1, 1, 0]] * 2
    assert Full().blocks(is_open, streams).unique().tolist() == [0]
    assert StreamsInTurn(("label",)).blocks(is_open).unique().tolist() == [0], "one stream is one block"
    with pytest.raises(UserError, match="unknown stream 'text'; choose from image, label"):
        StreamsInTurn(("text",)).blocks(is_open, streams)


def test_a_block_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        Blocks(0)
