"""What a metric needs is known before anything is drawn."""

from __future__ import annotations

import pytest
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments
from maskgen.evaluation.metrics.statistics import Statistics
from maskgen.sample.measures import LEAST, Scored, measure, require_able


def statistics(key: str, n: int) -> Statistics:
    x: Tensor = Rng.stream(key).normal((n, 4))
    return Statistics(key, {"protocol": "p"}, Moments.of(x), n=n, features=x, logits=x)


@pytest.mark.parametrize("name", LEAST)
def test_a_metric_takes_the_least_number_of_samples_and_no_fewer(name: str) -> None:
    real, least = statistics("real", 50), LEAST[name]
    require_able(name, real, least)
    assert measure(name, Scored(None, statistics("samples", least), real))
    with pytest.raises(UserError, match="samples, got --num"):
        require_able(name, real, least - 1)
    with pytest.raises(UserError, match=f"--metric {name}: "):
        measure(name, Scored(None, statistics("samples", least - 1), real))


def test_the_error_of_kid_is_of_all_pairs_and_subsets_have_a_spread_alone() -> None:
    pairs, subsets = measure("kid", Scored(None, statistics("samples", 30), statistics("real", 50)))
    assert pairs.standard_error is not None
    assert subsets.standard_error is None
    assert subsets.facts["std over subsets"] > 0
