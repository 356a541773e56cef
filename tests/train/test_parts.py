"""Which rows a run is validated on."""

from __future__ import annotations

import itertools

import pytest

from maskgen.train.some_rows import spread


@pytest.mark.parametrize(("total", "n", "world"), [(100, 10, 1), (100, 10, 3), (7, 7, 2), (297, 250, 4), (5, 1, 1)])
def test_processes_together_take_each_row_of_an_even_spread_once(total: int, n: int, world: int) -> None:
    rows = sorted(row for rank in range(world) for row in spread(total, n, rank, world))
    assert rows == spread(total, n)
    assert len(set(rows)) == n
    assert {later - row for row, later in itertools.pairwise(rows)} <= {total // n, -(-total // n)}


def test_rows_sorted_by_class_are_validated_in_every_class() -> None:
    labels = [label for label in range(10) for _ in range(100)]
    assert sorted(labels[row] for row in spread(len(labels), 50)) == sorted(list(range(10)) * 5)
