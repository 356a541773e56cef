"""What a metric needs is known before anything is drawn."""

from __future__ import annotations

import pytest
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments
from maskgen.evaluation.metrics.scored import FEATURE_METRICS, Scored, measure, require_able
from maskgen.evaluation.metrics.statistics import Statistics


def statistics(key: str, n: int) -> Statistics:
    x: Tensor = Rng.stream(key).normal((n, 4))
    return Statistics(key, {"protocol": "p"}, Moments.of(x), n=n, features=x, logits=x)


def test_a_metric_takes_the_least_number_of_samples_and_no_fewer() -> None:
    real = statistics("real", 50)
    for name in FEATURE_METRICS.names():
        least = FEATURE_METRICS.build(name).least
        if least == 2:
            continue
        require_able(name, real, least)
        assert measure(name, Scored(None, statistics("samples", least), real)), name
        with pytest.raises(UserError, match="samples, got --num"):
            require_able(name, real, least - 1)
        with pytest.raises(UserError, match=f"--metric {name}: "):
            measure(name, Scored(None, statistics("samples", least - 1), real))


def test_statistics_of_other_widths_do_not_compare() -> None:
    wide = Statistics("wide", {"protocol": "p"}, Moments.of(Rng.stream("wide").normal((9, 5))), n=9)
    with pytest.raises(UserError, match="wide and real do not compare: 5 and 4 features"):
        Scored(None, wide, statistics("real", 50)).distance()


def test_the_error_of_kid_is_of_all_pairs_and_subsets_have_a_spread_alone() -> None:
    pairs, subsets = measure("kid", Scored(None, statistics("samples", 30), statistics("real", 50)))
    assert pairs.standard_error is not None
    assert subsets.standard_error is None
    assert subsets.facts["std over subsets"] > 0
