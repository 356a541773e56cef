"""TokenSubset: the tokens a network computes. *Dropped* tokens are left out of compute; *masked* ones are [MASK]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import Rng


@dataclass(frozen=True)
class TokenSubset:
    """The kept positions of each row, in ascending order.

    Rows may keep different numbers of tokens: the longest sets K, the others are padded with positions not kept.

    Attributes:
        keep: (B, K) int64 positions.
        length: L.
        valid: (B, K) bool, False for padding; None without padding.
    """

    keep: Tensor
    length: int
    valid: Tensor | None = None

    @classmethod
    def draw(
        cls, n_rows: int, length: int, keep_ratio: float, rng: Rng, device: torch.device | str = "cpu"
    ) -> TokenSubset:
        """K = clamp(round(L * keep_ratio), 1, L) positions a row, uniformly without replacement.

        Raises:
            ValueError: keep_ratio outside (0, 1].
        """
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
        n_kept = min(max(round(length * keep_ratio), 1), length)
        return cls(rng.permutation(n_rows, length, device=device)[:, :n_kept].sort(1).values, length)

    @classmethod
    def of(cls, is_kept: Tensor, n: int | None = None) -> TokenSubset:
        """The positions (B, L) bool; K is at least 1, so that there is something to compute.

        Args:
            is_kept: (B, L) bool.
            n: number of kept positions, if it is known to be the same in every row and at least 1: then nothing is
                counted, which would wait for a GPU. On the meta device, which has no values, all positions are kept if
                it is not given.
        """
        order = is_kept.byte().argsort(dim=1, descending=True, stable=True)
        if n is not None or is_kept.is_meta:
            return cls(order[:, :n], is_kept.shape[1])
        counts = is_kept.sum(1, keepdim=True)
        n_most = max(int(counts.max()), 1)
        keep = order[:, :n_most]
        if bool((counts == n_most).all()):
            return cls(keep, is_kept.shape[1])
        return cls(keep, is_kept.shape[1], torch.arange(n_most, device=keep.device) < counts)

    def rest(self) -> TokenSubset:
        """The positions that are not kept."""
        n = None if self.valid is not None else self.length - self.keep.shape[1]
        return TokenSubset.of(~self.is_kept(), n or None)

    def pack(self, x: Tensor) -> Tensor:
        """The tokens without padding, row by row: (B, K, ...) -> (N, ...)."""
        return x.flatten(0, 1) if self.valid is None else x[self.valid]

    def gather(self, x: Tensor) -> Tensor:
        """The kept tokens: (B, L, D) -> (B, K, D), or (B, L) -> (B, K)."""
        return x.gather(1, self._index(x))

    def select(self, x: Tensor) -> Tensor:
        """The kept tokens without padding, row by row: (B, L, ...) -> (N, ...)."""
        return self.pack(self.gather(x))

    def scatter(self, x: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Kept tokens at their positions, `fill` elsewhere: (B, K, D) -> (B, L, D), or (B, K) -> (B, L)."""
        whole = torch.empty(x.shape[0], self.length, *x.shape[2:], dtype=x.dtype, device=x.device)
        whole[:] = fill
        if self.valid is not None:  # padding writes back what is there already
            valid = self.valid if x.ndim == 2 else self.valid[..., None]
            x = torch.where(valid, x, whole.gather(1, self._index(x)))
        return whole.scatter(1, self._index(x), x)

    def is_kept(self) -> Tensor:
        """(B, L) bool."""
        kept = torch.zeros(self.keep.shape[0], self.length, dtype=torch.bool, device=self.keep.device)
        return kept.scatter(
            1, self.keep, torch.ones_like(self.keep, dtype=torch.bool) if self.valid is None else self.valid
        )

    def _index(self, x: Tensor) -> Tensor:
        return self.keep if x.ndim == 2 else self.keep[..., None].expand(-1, -1, x.shape[2])
