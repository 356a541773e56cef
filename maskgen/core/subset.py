"""TokenSubset: which tokens a network computes. *Dropped* tokens are left out of compute; *masked* is another word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.rng import Rng


@dataclass(frozen=True)
class TokenSubset:
    """The kept positions of each row: `keep` (B, K) int64 out of `length` L.

    Rows may keep different numbers: the row that keeps most sets K, `valid` (B, K) bool says which are meant. The rest
    pads with positions that are not kept; None where all count. Kept ones come first, ascending.
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

        With `n` every row is known to keep n of them, at least 1: nothing is counted, nor waited for on a GPU. On the
        meta device, where costs are counted and no value is known, it is all of them where it is not given.
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
        """The tokens that are meant, row by row: (B, K, ...) -> (N, ...)."""
        return x.flatten(0, 1) if self.valid is None else x[self.valid]

    def gather(self, x: Tensor) -> Tensor:
        """The kept tokens: (B, L, D) -> (B, K, D), or (B, L) -> (B, K)."""
        return x.gather(1, self._index(x))

    def scatter(self, x: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Kept tokens back in their places, `fill` elsewhere: (B, K, D) -> (B, L, D), or (B, K) -> (B, L)."""
        whole = torch.empty(x.shape[0], self.length, *x.shape[2:], dtype=x.dtype, device=x.device)
        whole[:] = fill
        if self.valid is not None:  # what pads gives its place back what stands there
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
