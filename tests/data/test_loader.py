"""Laws of the order of data."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from itertools import chain, islice

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, TensorSplit
from maskgen.data.loader import CounterSampler, batches, flip, in_order, permutation


def numbered(n: int) -> TensorSplit:
    """Images of one pixel whose value and label are the index."""
    return TensorSplit(torch.arange(n, dtype=torch.uint8)[:, None, None, None], torch.arange(n))


def first_rows(n: int, batch_size: int, count: int, **arguments: int) -> list[list[int]]:
    return list(islice(CounterSampler(n, batch_size, seed=3, **arguments), count))


def test_a_permutation_depends_on_seed_and_epoch_only() -> None:
    torch.manual_seed(0)
    first = permutation(1, 0, 50)
    torch.manual_seed(1)
    assert torch.equal(first, permutation(1, 0, 50))
    assert not torch.equal(first, permutation(1, 1, 50))
    assert not torch.equal(first, permutation(2, 0, 50))
    assert first.sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 5)])
def test_batches_are_the_epochs_laid_end_to_end(n: int, batch_size: int) -> None:
    rows = list(chain(*first_rows(n, batch_size, 3 * n)))
    for epoch in range(len(rows) // n):
        assert rows[epoch * n : (epoch + 1) * n] == permutation(3, epoch, n).tolist()


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_a_resumed_run_sees_the_batches_it_would_have_seen(start: int) -> None:
    assert first_rows(10, 4, 5, start=start) == first_rows(10, 4, start + 5)[start:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batch_of_one_process(world: int) -> None:
    slices = [first_rows(10, 8, 4, rank=rank, world=world) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*slices, strict=True)] == first_rows(10, 8, 4)


def test_every_row_is_seen_equally_often() -> None:
    seen = Counter(chain(*first_rows(6, 4, 9)))
    assert set(seen.values()) == {6}
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "has no rows"),
        ({"batch_size": 0}, "batch_size must be .* got 0"),
        ({"batch_size": 5, "world": 2}, "multiple of the 2 processes, got 5"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"start": -1}, "start and offset must be at least 0, got -1 and 0"),
    ],
)
def test_an_impossible_order_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CounterSampler(**{"n": 10, "batch_size": 4, "seed": 0, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_rows_of_the_sampler_with_any_number_of_workers(workers: int) -> None:
    wanted = first_rows(10, 4, 4, start=1)
    for rows, (images, labels) in zip(
        wanted, batches(numbered(10), CounterSampler(10, 4, 3, start=1), workers), strict=False
    ):
        assert labels.tolist() == rows
        assert images.flatten().tolist() == rows
        assert images.dtype == torch.uint8


def test_a_data_set_smaller_than_the_batch_wraps_around() -> None:
    images, labels = next(batches(numbered(3), CounterSampler(3, 8, 0)))
    assert images.shape == (8, 1, 1, 1)
    assert labels.bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_loading_does_not_touch_the_global_stream() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    next(batches(numbered(5), CounterSampler(5, 2, 0)))
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_in_order_gives_every_row_once(batch_size: int) -> None:
    split = DATASETS.build("digits").split("test")
    parts = list(in_order(split, batch_size))
    assert torch.equal(torch.cat([labels for _, labels in parts]), split.labels)
    assert max(len(labels) for _, labels in parts) <= batch_size


def test_in_order_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(in_order(numbered(3), 0))


def test_flip_mirrors_about_half_of_the_images_and_repeats_itself() -> None:
    images = torch.arange(4, dtype=torch.uint8).expand(400, 1, 2, 4)
    flipped = flip(images, Rng.stream(0, "flip", 7))
    is_flipped = flipped[:, 0, 0, 0] == 3
    assert torch.equal(flipped[is_flipped], images[is_flipped].flip(-1))
    assert torch.equal(flipped[~is_flipped], images[~is_flipped])
    assert 150 < is_flipped.sum() < 250
    assert torch.equal(flipped, flip(images, Rng.stream(0, "flip", 7)))
    assert not torch.equal(flipped, flip(images, Rng.stream(0, "flip", 8)))


def test_workers_end_with_the_batches_whoever_still_refers_to_them() -> None:
    before = set(multiprocessing.active_children())
    rows = batches(numbered(10), CounterSampler(10, 4, 3), workers=2)
    next(rows)
    held = rows.gi_frame.f_locals["loader"]
    assert len(set(multiprocessing.active_children()) - before) == 2
    rows.close()
    assert set(multiprocessing.active_children()) <= before
    assert held is not None
