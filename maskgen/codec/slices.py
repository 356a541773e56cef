"""A network evaluated in float64 on a few rows at a time: its outputs depend on the batch by rounding only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import traits_of


class Sliced:
    """A denoiser of discrete tokens that evaluates another one in float64, at most `size` rows at once.

    Args:
        network: a `Denoiser`, in float64.
        size: rows.
    """

    def __init__(self, network: Any, size: int) -> None:
        self.network, self.size = network, size
        self.traits = traits_of(network)
        self._cached: dict[int, Any] = {}

    def cached(self) -> Sliced:
        """The same with a cache of finished tokens for each slice; for a network that offers one."""
        other = Sliced(self.network, self.size)
        other.traits = replace(self.traits, has_cache=False, keeps_rows=True)
        return other

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64, t (B,) -> logits (M, V) float64 at the positions `where` (B, L), all if None."""
        where = torch.ones_like(x_t, dtype=torch.bool) if where is None else where
        found = []
        for start in range(0, len(x_t), self.size):
            rows = slice(start, start + self.size)
            if not bool(where[rows].any()):
                continue
            own = None if cond is None else cond.rows(torch.arange(len(x_t))[rows])
            answer = self._denoiser(start)(x_t[rows], t[rows].double(), own, subset=subset, where=where[rows])
            found.append(categorical_at(answer, where[rows]).logits.double())
        return Categorical(torch.cat(found), where)

    def _denoiser(self, start: int) -> Any:
        """Of the rows from `start` on."""
        if not self.traits.keeps_rows:
            return self.network
        if start not in self._cached:
            self._cached[start] = self.network.cached()
        return self._cached[start]
