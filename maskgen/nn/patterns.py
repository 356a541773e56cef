"""Which tokens attend to which: attention patterns as predicates over positions, and the masks they make."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor


class AttentionPattern(ABC):
    """Which keys a query attends to; a final class is a frozen dataclass."""

    @abstractmethod
    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries at positions (L, 1) attend to keys at positions (1, n): (L, n) or (B, L, n) bool."""

    def closed(self, n: int) -> int:  # noqa: ARG002 - a pattern without closed prefixes
        """Some m <= n such that the first m tokens attend to each other only: they can be cached. 0 is safe."""
        return 0

    def mask(
        self, length: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Tensor | Literal["causal"] | None:
        """The mask of queries start ... length - 1 over keys 0 ... length - 1, as `attend` takes it.

        (length - start, length) bool, or (B, 1, length - start, length) if rows differ; `causal`, and None if nothing
        is masked, where no tensor is needed.
        """
        query = torch.arange(start, length, device=device)[:, None]
        allowed = self.allows(query, torch.arange(length, device=device)[None])
        return allowed if allowed.ndim == 2 else allowed[:, None]


@dataclass(frozen=True)
class FullAttention(AttentionPattern):
    """Every token attends to every token."""

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones_like(query == key)

    def mask(
        self,
        length: int,  # noqa: ARG002 - one signature for all patterns
        device: torch.device | str = "cpu",  # noqa: ARG002
        start: int = 0,  # noqa: ARG002
    ) -> Tensor | Literal["causal"] | None:
        return None


@dataclass(frozen=True)
class Causal(AttentionPattern):
    """A token attends to itself and the tokens before it."""

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def closed(self, n: int) -> int:
        return n

    def mask(
        self, length: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Tensor | Literal["causal"] | None:
        if start == 0:
            return "causal"
        return None if length - start == 1 else super().mask(length, device, start)


@dataclass(frozen=True)
class BlockCausal(AttentionPattern):
    """A token attends to its own block of `block_length` tokens and to the blocks before it (BD3-LM, semi-AR)."""

    block_length: int

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return key // self.block_length <= query // self.block_length

    def closed(self, n: int) -> int:
        return n // self.block_length * self.block_length

    def mask(
        self, length: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Tensor | Literal["causal"] | None:
        is_last_block = length and start >= self.closed(length - 1)
        return None if is_last_block else super().mask(length, device, start)


@dataclass(frozen=True)
class GroupCausal(AttentionPattern):
    """A token attends to its own group and to the groups before it; groups of given sizes (scales of VAR, sets).

    Args:
        sizes: tokens of each group, in order; tokens after the last group belong to it.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes of groups must be positive, got {list(self.sizes)}")

    @property
    def ends(self) -> list[int]:
        """Where each group but the last ends."""
        return list(accumulate(self.sizes))[:-1]

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        ends = torch.tensor(self.ends, dtype=query.dtype, device=query.device)
        of_key, of_query = (torch.bucketize(x, ends, right=True) for x in (key, query))
        return of_key <= of_query

    def closed(self, n: int) -> int:
        ends = [0, *self.ends]
        return ends[bisect_right(ends, n) - 1]


@dataclass(frozen=True)
class Window(AttentionPattern):
    """A token attends to tokens at most `radius` away along every axis of its grid.

    Args:
        grid: sizes of the grid, row-major; `(L,)` is a text.
        radius: along each axis, `math.inf` for no limit.
    """

    grid: tuple[int, ...]
    radius: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.grid) != len(self.radius) or min(self.grid) < 1 or not all(r >= 0 for r in self.radius):
            raise ValueError(
                f"radius must be at least 0 along each axis of grid {list(self.grid)}, got {list(self.radius)}"
            )

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        allowed, stride = torch.ones_like(query == key), math.prod(self.grid)
        for size, radius in zip(self.grid, self.radius, strict=True):
            stride //= size
            distance = (query // stride % size - key // stride % size).abs()
            allowed = allowed & (distance <= radius)
        return allowed


@dataclass(frozen=True, eq=False)
class Prefix(AttentionPattern):
    """A prefix whose tokens attend to each other, and causal attention after it (prefix LM, arXiv 1910.10683).

    Args:
        length: tokens of the prefix; (B,) int64 where rows differ.
    """

    length: int | Tensor

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        if isinstance(self.length, int):
            return (key <= query) | (key < self.length)
        return (key <= query) | (key < self.length[:, None, None])

    def closed(self, n: int) -> int:
        longest = self.length if isinstance(self.length, int) else int(self.length.max())
        return n if n >= longest else 0


@dataclass(frozen=True, eq=False)
class Documents(AttentionPattern):
    """A token attends to the tokens of its own document.

    Args:
        ids: (B, L) int64, the document of each token of a packed row.
    """

    ids: Tensor

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return self.ids[:, query[:, 0], None] == self.ids[:, None, key[0]]


@dataclass(frozen=True, eq=False)
class Unpadded(AttentionPattern):
    """A token attends to itself and to all tokens that are not padding: no query is without a key.

    Args:
        valid: (B, L) bool, False for padding.
    """

    valid: Tensor

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return self.valid[:, None, key[0]] | (query == key)


@dataclass(frozen=True)
class Intersection(AttentionPattern):
    """A query attends to the keys that both patterns allow."""

    first: AttentionPattern
    second: AttentionPattern

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return self.first.allows(query, key) & self.second.allows(query, key)

    def closed(self, n: int) -> int:
        return max(self.first.closed(n), self.second.closed(n))


@dataclass(frozen=True)
class NoisyClean(AttentionPattern):
    """BD3-LM's training pass over [x_t; x_0], 2 L tokens (arXiv 2503.09573, section 3.3 and figure 3).

    A noisy token attends to its own noisy block and to the clean blocks before it; a clean token to its own clean block
    and those before it.

    Args:
        length: L.
        block_length: tokens of a block.
    """

    length: int
    block_length: int

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        of_query, of_key = (position % self.length // self.block_length for position in (query, key))
        from_noisy, to_noisy = query < self.length, key < self.length
        among_noisy = from_noisy & to_noisy & (of_query == of_key)
        to_clean = ~to_noisy & torch.where(from_noisy, of_key < of_query, of_key <= of_query)
        return among_noisy | to_clean


def packed(valid: Tensor | None, documents: Tensor | None) -> AttentionPattern:
    """The pattern of padded rows, `valid` (B, L) bool, and of packed documents (B, L) int64; full without both."""
    parts = [Documents(documents)] if documents is not None else []
    more = [Unpadded(valid)] if valid is not None else []
    if parts and more:
        return Intersection(parts[0], more[0])
    return (parts or more or [FullAttention()])[0]
