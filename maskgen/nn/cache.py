"""Keys and values of tokens that are final, kept between decoding steps."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.nn.mixers.base import LayerCache


class KeyValueCache:
    """Keys and values of the first tokens of every row, a `LayerCache` per block, and the ids they belong to.

    A prefix may be kept if its tokens attend to each other only, see `AttentionPattern.closed`; then a pass over the
    tokens after it, given the cache, equals a pass over the whole row. Not for training: a block that is recomputed in
    the backward pass would append twice.

    Args:
        depth: number of blocks.
    """

    def __init__(self, depth: int) -> None:
        self.layers = [LayerCache() for _ in range(depth)]
        self.ids: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of kept tokens."""
        return 0 if self.ids is None else self.ids.shape[1]

    def append(self, ids: Tensor) -> None:
        """Record the ids (B, n) of tokens whose keys and values the layers have received."""
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], 1)

    def matching(self, ids: Tensor) -> int:
        """How many leading positions of `ids` (B, L) are kept with the same ids in every row."""
        if self.ids is None or len(self.ids) != len(ids):
            return 0
        n = min(self.length, ids.shape[1])
        return int((self.ids[:, :n] == ids[:, :n]).all(0).long().cumprod(0).sum())

    def crop(self, n: int) -> None:
        """Keep the first n tokens only."""
        self.ids = None if n == 0 or self.ids is None else self.ids[:, :n]
        for layer in self.layers:
            if layer.kept is not None:
                keys, values = layer.kept
                layer.kept = (keys[:, :, :n], values[:, :, :n]) if n else None

    def fork(self, rows: Tensor | None = None) -> KeyValueCache:
        """A copy, of the rows (B,) bool if given, that can be extended without changing this one."""
        other = KeyValueCache(len(self.layers))
        if self.ids is not None:
            other.ids = self.ids if rows is None else self.ids[rows]
        for mine, copy in zip(self.layers, other.layers, strict=True):
            if mine.kept is not None:
                copy.kept = mine.kept if rows is None else (mine.kept[0][rows], mine.kept[1][rows])
        return other
