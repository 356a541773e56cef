"""Rows of several streams: places, ids and one mask id."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.streams import Stream, TokenLayout

DIGIT = Stream("image", "image", 16, (2, 3))
LABEL = Stream("label", "label", 10, (1,))
BOTH = TokenLayout.of(DIGIT, LABEL)


def test_one_stream_keeps_ids_positions_and_grid() -> None:
    layout = TokenLayout.of(DIGIT)
    tokens = torch.arange(12).view(2, 6)
    assert layout.join({"image": tokens}).equal(tokens)
    assert (layout.mask_id, layout.length, layout.shape, layout.allowed()) == (16, 6, (2, 3), None)


def test_joining_and_splitting_undo_each_other_masks_included() -> None:
    tokens = {"image": torch.randint(17, (4, 6)), "label": torch.randint(11, (4, 1))}
    row = BOTH.join(tokens)
    assert row.shape == (4, 7)
    assert row.max() <= BOTH.mask_id == 26
    assert (row[:, 6] >= 16).all()
    back = BOTH.split(row)
    assert all(back[name].equal(value) for name, value in tokens.items())


def test_a_stream_that_is_left_out_is_masked() -> None:
    row = BOTH.join({"label": torch.tensor([[3]])})
    assert row.tolist() == [[26] * 6 + [19]]
    assert BOTH.join({}, n_rows=2).shape == (2, 7)


def test_tokens_may_come_on_their_grid() -> None:
    grid = torch.randint(16, (2, 2, 3))
    assert BOTH.join({"image": grid})[:, :6].equal(grid.flatten(1))


def test_a_position_may_hold_the_ids_of_its_stream_only() -> None:
    allowed = BOTH.allowed()
    assert allowed is not None
    assert allowed.sum(1).tolist() == [16] * 6 + [10]
    assert allowed[6, 16:].all()


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ((), "different names"),
        ((DIGIT, DIGIT), "different names"),
        ((DIGIT, Stream("latent", "image", 0, (2, 2), 4)), "not supported"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(streams: tuple[Stream, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLayout(streams)


def test_a_stream_is_discrete_or_continuous() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        Stream("image", "image", 0, (2, 2))
    with pytest.raises(ValueError, match="shape"):
        Stream("image", "image", 3, ())
