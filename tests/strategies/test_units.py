"""Squares of tokens that are masked as a whole."""

from __future__ import annotations

import pytest

from maskgen.core.rng import Rng
from maskgen.recipes.load import load_recipe
from maskgen.strategies import Units


def test_a_share_of_whole_units_masks_every_unit_wholly_or_not_at_all() -> None:
    mask = Units(2).mask(30 / 49, 8, (14, 14), Rng.stream(0)).view(8, 7, 2, 7, 2)
    n_of_unit = mask.sum((2, 4))
    assert set(n_of_unit.unique().tolist()) == {0, 4}
    assert (n_of_unit > 0).sum((1, 2)).tolist() == [30] * 8


def test_the_published_recipe_masks_thirty_of_forty_nine_units() -> None:
    process = load_recipe("image/imagenet-simmim-b").build_process(0)
    assert process.n_masked(196) == 4 * 30


def test_units_of_one_token_are_random_masking_and_none_is_refused() -> None:
    assert Units(1).scores(2, (3, 5), Rng.stream(1)).unique().numel() == 30
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Units(0)
