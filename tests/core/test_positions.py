"""Denoisers may return the positions that were asked for, or all of them."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.positions import categorical_at, prediction_at
from maskgen.core.predictions import Categorical, Point

LOGITS = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
WHERE = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5


def test_logits_of_all_positions_and_packed_ones_are_the_same_prediction() -> None:
    packed = Categorical(LOGITS[WHERE], WHERE)
    for answer in (LOGITS, LOGITS[WHERE], Categorical(LOGITS), packed):
        found = categorical_at(answer, WHERE, vocab_size=5)
        assert found.where is WHERE
        assert torch.equal(found.logits, packed.logits)
    assert categorical_at(packed, WHERE) is packed
    difficulty = torch.arange(24.0).view(4, 6)
    whole = categorical_at(Categorical(LOGITS, difficulty=difficulty), WHERE)
    assert whole.difficulty is not None
    assert torch.equal(whole.difficulty, difficulty[WHERE])


def test_a_point_of_all_positions_is_selected_and_other_predictions_pass() -> None:
    value = torch.arange(48.0).view(4, 6, 2)
    found = prediction_at(Point(value), WHERE)
    assert isinstance(found, Point)
    assert torch.equal(found.value, value[WHERE])
    assert prediction_at(found, WHERE) is found


def test_wrong_shapes_are_named_in_one_sentence() -> None:
    n = int(WHERE.sum())
    for answer in (LOGITS[:, :5], LOGITS[:3], LOGITS[0], Categorical(LOGITS, WHERE)):
        with pytest.raises(ValueError, match=rf"returned logits of shape .* return \(4, 6, V\), or \({n}, V\)"):
            categorical_at(answer, WHERE)
    with pytest.raises(ValueError, match=r"logits of shape \(4, 6, 5\), but the process has vocab_size 4"):
        categorical_at(LOGITS, WHERE, vocab_size=4)
    with pytest.raises(ValueError, match=r"need logits .* got Point"):
        categorical_at(Point(LOGITS), WHERE)
