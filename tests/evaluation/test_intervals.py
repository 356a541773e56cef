"""The limit of infinitely many images, and intervals over sets."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.metrics.intervals import extrapolated_distance, over_sets

D = 24


def test_extrapolation_takes_most_of_the_bias_of_few_images_away() -> None:
    reference = Moments.from_state(10**9, torch.zeros(D).double(), torch.eye(D).double() * (10**9 - 1))
    samples = Rng.stream("samples").normal((2000, D))  # the same law: the true distance is 0
    plain = frechet_distance(Moments.of(samples), reference)
    found = extrapolated_distance(samples, reference, Rng.stream(0))
    assert abs(found.value) < plain / 4
    assert abs(found.value) < 4 * found.standard_error + 0.01
    assert found.sizes[-1] == 2000
    assert found.distances[0] > found.distances[-1]
    assert found.distances[-1] == pytest.approx(plain, rel=1e-9)


def test_points_on_a_line_have_no_fit_error() -> None:
    from maskgen.evaluation.metrics.intervals import _intercept

    assert _intercept([1, 2, 3, 4], [5, 7, 9, 11]) == pytest.approx((3, 0), abs=1e-6)


def test_too_few_samples_cannot_be_extrapolated() -> None:
    reference = Moments.of(Rng.stream("r").normal((50, D)))
    with pytest.raises(ValueError, match="got 4 samples"):
        extrapolated_distance(torch.zeros(4, D), reference, Rng.stream(0))


def test_an_interval_over_sets_contains_the_mean_of_the_law_as_often_as_it_says() -> None:
    draws = 2 + Rng.stream("draws").normal((2000, 4))
    found = [over_sets(row) for row in draws.tolist()]
    share = sum(one.low <= 2 <= one.high for one in found) / len(found)
    assert share == pytest.approx(0.95, abs=0.02)


def test_one_set_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 sets of samples, got 1"):
        over_sets([1.0])
