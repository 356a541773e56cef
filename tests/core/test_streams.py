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


def test_a_masked_row_keeps_what_is_known_and_repeats_one_row_for_all() -> None:
    row = BOTH.masked({"label": torch.tensor([[3]])}, 4)
    assert row.tolist() == [[26] * 6 + [19]] * 4
    part = torch.tensor([[16, 5, 16, 16, 1, 16]])  # 16 is the image's own [MASK]
    assert BOTH.masked({"image": part}, 2).tolist() == [[26, 5, 26, 26, 1, 26, 26]] * 2
    latents = TokenLayout.of(Stream("a", "image", 0, (2, 2), 3), Stream("b", "map", 0, (1,), 3))
    row = latents.masked({"b": torch.ones(1, 1, 3)}, 2)
    assert row.shape == (2, 5, 3)
    assert row[:, :4].isnan().all()
    assert (row[:, 4] == 1).all()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"label": torch.tensor([[11]])}, "stream 'label': ids must be in 0 ... 9, or 10 for .MASK.; got 11 ... 11"),
        ({"label": torch.tensor([[-1]])}, "got -1 ... -1"),
        ({"label": torch.zeros(2, 3, dtype=torch.int64)}, r"tokens must be \(B, 1\), got \(2, 3\)"),
        ({"caption": torch.zeros(2, 1, dtype=torch.int64)}, "unknown stream 'caption'; choose from image, label"),
        ({"label": torch.zeros(3, 1, dtype=torch.int64)}, "equal numbers of rows"),
    ],
)
def test_known_tokens_that_do_not_fit_are_refused(known: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BOTH.masked(known, 2)


def test_logits_of_other_streams_are_large_negative_and_finite_in_all_precisions() -> None:
    parts = {"image": torch.randn(2, 6, 16), "label": torch.randn(2, 1, 10)}
    logits = BOTH.join_logits(parts)
    assert logits.shape == (2, 7, 26)
    assert logits[:, :6, :16].equal(parts["image"])
    assert BOTH.limited(logits).equal(logits)
    where = torch.zeros(2, 7, dtype=torch.bool)
    where[0, 2] = where[1, 6] = True
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        own = BOTH.limited(torch.zeros(2, 26, dtype=dtype), where)
        assert own.isfinite().all()
        assert own.softmax(-1)[0, :16].sum().item() == pytest.approx(1, abs=1e-2)
        assert own.softmax(-1)[1, :16].sum() == 0
    one = torch.randn(2, 6, 16)
    assert TokenLayout.of(DIGIT).limited(one) is one


def test_values_of_rows_and_streams_are_spread_over_positions() -> None:
    assert BOTH.over_row(torch.tensor([1.0, 2.0])).tolist() == [[1], [2]]
    assert BOTH.over_row(torch.tensor([[1.0, 2.0]])).tolist() == [[1] * 6 + [2]]
    assert BOTH.parts(torch.arange(7)[None])["label"].tolist() == [[6]]
