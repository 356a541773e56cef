"""The cache of networks that generate groups of tokens in turn: a denoiser that computes finished groups once."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.patterns import AttentionPattern


class InTurn(Protocol):
    """A network whose row is slots, group by group; a slot attends to its own group and to the groups before it."""

    traits: NetworkTraits
    blocks: nn.ModuleList

    @property
    def has_final_inputs(self) -> bool:
        """Whether the slots of a group show tokens of the groups before it only, so that they change no more."""

    @property
    def pattern(self) -> AttentionPattern:
        """Which slots attend to which."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical: ...

    def inputs(self, x_t: Tensor) -> Tensor:
        """The ids of the slots (B, L)."""

    def span(self, where: Tensor) -> tuple[int, int] | None:
        """First slot and end of the group that predicts the positions `where` (B, L); None if it is not one group."""

    def continued(self, ids: Tensor, t: Tensor, cond: Condition | None, cache: KeyValueCache) -> Tensor:
        """Hidden vectors of the slots of `ids` (B, n) that are not in the cache, which then has them."""

    def answered(self, x: Tensor, start: int, t: Tensor, cond: Condition | None, where: Tensor) -> Categorical:
        """The prediction at `where` (B, L) from the hidden vectors of its group, whose first slot is `start`."""


class Cached:
    """A network that generates in turn, as a denoiser that computes each finished group once.

    Exact: cached slots are compared with those of every call, and dropped from the first difference on; other classes
    drop all. One object per decoding; a call for positions in several groups is computed without the cache.
    """

    def __init__(self, network: InTurn) -> None:
        self.network = network
        self.cache = KeyValueCache(len(network.blocks))
        self.labels: Tensor | None = None
        self.traits = replace(network.traits, has_cache=False, keeps_rows=True)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """As the network; x_t (B, L), the same rows in every call."""
        span = None if where is None or subset is not None else self.network.span(where)
        if where is None or span is None:
            return self.network(x_t, t, cond, subset=subset, where=where)
        start, end = span
        ids = self.network.inputs(x_t)
        self._extend(ids, t, start, cond)
        rows = where.any(1)
        some = None if cond is None else cond.rows(rows)
        is_all = bool(rows.all())
        # Final inputs go into the cache with the query itself: the next call need not compute them again.
        cache = self.cache if is_all and self.network.has_final_inputs else self.cache.fork(None if is_all else rows)
        x = self.network.continued(ids[rows, :end], t[rows], some, cache)
        return Categorical(self.network.answered(x, start, t[rows], some, where[rows]).logits, where)

    def _extend(self, ids: Tensor, t: Tensor, start: int, cond: Condition | None) -> None:
        """Make the cache hold exactly the slots before `start`."""
        labels = None if cond is None else cond.labels
        shared = min(self.cache.matching(ids), start) if _is_same(labels, self.labels) else 0
        self.labels = labels
        self.cache.crop(self.network.pattern.closed(shared))
        if self.cache.length < start:
            self.network.continued(ids[:, :start], t, cond, self.cache)


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two batches have the same labels."""
    return one is other or (one is not None and other is not None and torch.equal(one, other))
