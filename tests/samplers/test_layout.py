"""Laws of the layouts."""

from __future__ import annotations

import pytest

from maskgen.samplers.masked.layout import LAYOUTS, Blocks


@pytest.mark.parametrize("length", [1, 7, 32, 33, 256])
@pytest.mark.parametrize("name", LAYOUTS.names())
def test_every_layout_covers_each_position_once(name: str, length: int) -> None:
    positions = [place for start, end in LAYOUTS.build(name).spans(length) for place in range(start, end)]
    assert sorted(positions) == list(range(length))


def test_blocks_go_from_left_to_right_and_the_last_may_be_short() -> None:
    assert Blocks(3).spans(7) == [(0, 3), (3, 6), (6, 7)]


def test_a_block_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        Blocks(0)
