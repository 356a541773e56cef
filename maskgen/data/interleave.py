"""A shuffled order of rows in which every shard is read forwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import fold


@dataclass(frozen=True)
class Layout:
    """Shuffling of rows of shards, a function of seed and epoch without state.

    In each epoch the shards are distributed to `lanes` in a random order; a lane reads its shards one after the other
    and shuffles each window of `window` rows. A lane has fixed places in every `period` rows of the run; after its end
    the other lanes fill them. So a batch of `period` rows, cut into slices by processes, has the rows of each process
    in few shards, and every row occurs once an epoch.

    Raises:
        ValueError: a number below 1, or fewer places than lanes.
    """

    window: int = 256
    lanes: int = 8
    period: int = 128

    def __post_init__(self) -> None:
        if min(self.window, self.lanes) < 1 or self.period < self.lanes:
            raise ValueError(
                "buffer and lanes must be at least 1 and batch_size at least lanes, got "
                f"{self.window}, {self.lanes} and {self.period}"
            )

    def order(self, counts: Sequence[int], seed: int, epoch: int) -> Tensor:
        """(N,) int64: the rows of an epoch, numbered shard by shard; `counts` are the rows of each shard."""
        starts = torch.tensor([0, *counts]).cumsum(0)
        total, lanes = int(starts[-1]), min(self.lanes, len(counts))
        dealt = torch.randperm(len(counts), generator=_generator(seed, "shards", epoch)).tolist()
        rows, places = [], []
        for lane in range(lanes):
            shards = dealt[lane::lanes]
            rows += [starts[shard] + self._shuffled(counts[shard], seed, epoch, shard) for shard in shards]
            places.append(self._places(lane, lanes, sum(counts[shard] for shard in shards), epoch * total))
        order: Tensor = torch.cat(rows)[torch.cat(places).argsort(stable=True)]
        return order

    def _shuffled(self, n: int, seed: int, epoch: int, shard: int) -> Tensor:
        """(n,) int64: rows of a shard, each window of them shuffled."""
        chance = torch.rand(n, generator=_generator(seed, "window", epoch, shard), dtype=torch.float64)
        firsts = torch.arange(0, n, self.window)[:, None]
        last_full = n - n % self.window
        order = chance[:last_full].view(-1, self.window).argsort(-1) + firsts[: last_full // self.window]
        return torch.cat([order.flatten(), chance[last_full:].argsort() + last_full])

    def _places(self, lane: int, lanes: int, n: int, before: int) -> Tensor:
        """(n,) int64: preferred positions of a lane's rows, counted from the last whole period before the epoch."""
        first, last = lane * self.period // lanes, (lane + 1) * self.period // lanes
        phase = before % self.period
        begun = min(max(last - max(phase, first), 0), n)  # of its places in the period that the epoch begins in
        turns = torch.arange(1, 1 + math.ceil((n - begun) / (last - first)))[:, None] * self.period
        later = (turns + torch.arange(first, last)).flatten()[: n - begun]
        return torch.cat([max(phase, first) + torch.arange(begun), later])


def _generator(*keys: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(fold(*keys))
