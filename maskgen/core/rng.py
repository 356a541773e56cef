"""Random number streams: one for a batch, or one for each of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def fold(*keys: int | str) -> int:
    """Hash keys (seed, epoch, index, ...) to a 63-bit seed: equal keys give equal seeds, others unrelated ones."""
    plain = tuple(key if isinstance(key, str) else int(key) for key in keys)  # NumPy integers are printed otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


BLOCK = 16


@dataclass(frozen=True)
class Share:
    """Rows `first` to `first` + `count` - 1 of a batch of `total`, which is drawn in blocks of rows."""

    first: int
    count: int
    total: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.first < 0 or self.first + self.count > self.total:
            raise ValueError(f"rows {self.first} + {self.count} are not in a batch of {self.total}")

    @property
    def blocks(self) -> range:
        """Indices of the blocks that contain the rows."""
        return range(self.first // BLOCK, (self.first + self.count - 1) // BLOCK + 1)

    def size(self, block: int) -> int:
        """Number of rows in a block."""
        return min(BLOCK, self.total - block * BLOCK)


class Rng:
    """Random draws for the rows of a batch.

    `Rng(seed)`, or `Rng(seed, step, rank)`, draws a batch from one generator; `Rng.stream` is the same.
    `Rng.per_sample(seeds)` has one generator per row, so that a row depends on its own seed only, in any batch.
    Numbers are drawn on the CPU and moved, so they are equal on all devices.
    """

    def __init__(self, *keys: int | str) -> None:
        if not keys or any(isinstance(key, list | tuple) for key in keys):
            raise TypeError(
                f"Rng takes numbers or strings, Rng(seed, step); Rng.per_sample(seeds) has a stream per row; got {keys}"
            )
        self._start((fold(*keys),))

    def _start(self, seeds: tuple[int, ...], *, is_per_sample: bool = False, share: Share | None = None) -> None:
        self._seeds = seeds
        self.is_per_sample = is_per_sample
        self._share = share
        keys = [("rng", seed) for seed in seeds] if share is None else [("rng", seeds[0], b) for b in share.blocks]
        self._generators = [torch.Generator().manual_seed(fold(*key)) for key in keys]

    @classmethod
    def _of(cls, seeds: tuple[int, ...], *, is_per_sample: bool, share: Share | None = None) -> Rng:
        """From seeds that are hashed already."""
        rng = Rng.__new__(Rng)
        rng._start(seeds, is_per_sample=is_per_sample, share=share)
        return rng

    @classmethod
    def stream(cls, *keys: int | str) -> Rng:
        """One stream, from any keys: `Rng.stream(seed, step, rank)`."""
        return Rng(*keys)

    @classmethod
    def per_sample(cls, seeds: Sequence[int]) -> Rng:
        """One stream per row; draws then have `len(seeds)` rows."""
        return cls._of(tuple(seeds), is_per_sample=True)

    @classmethod
    def rows(cls, *keys: int | str, first: int, count: int, total: int) -> Rng:
        """Rows `first` to `first` + `count` - 1 of a batch of `total`, for any split of the batch over processes.

        Every 16 rows of the batch have a stream, so a process draws little more than its own.
        """
        return cls._of((fold(*keys),), is_per_sample=False, share=Share(first, count, total))

    @property
    def whole(self) -> Rng:
        """One stream for a whole batch, the same in all processes that share it."""
        return self if self._share is None else Rng.stream(self._seeds[0], "whole")

    def place(self, n: int) -> tuple[int, int]:
        """(first, total) of n draws, a whole number per row, among the draws of the whole batch."""
        if self._share is None:
            return 0, n
        each = n // self._share.count
        return self._share.first * each, self._share.total * each

    @property
    def n_rows(self) -> int:
        """Number of streams: the rows of an Rng of samples."""
        return len(self._seeds)

    @property
    def generators(self) -> list[torch.Generator] | torch.Generator:
        """The generators, one per row or a single one, for libraries that draw by themselves."""
        return self._generators if self.is_per_sample else self._generators[0]

    def fork(self, *keys: int | str) -> Rng:
        """Independent streams of the same form, for another purpose; does not advance this one."""
        seeds = tuple(fold(seed, *keys) for seed in self._seeds)
        return Rng._of(seeds, is_per_sample=self.is_per_sample, share=self._share)

    def uniform(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """Float64 in [0, 1), 53 random bits. Shape as given; first dimension is the rows."""
        return self._draw(shape, device, torch.rand, torch.float64)

    def normal(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """Float32 standard normal. Shape as given; first dimension is the rows."""
        return self._draw(shape, device, torch.randn, torch.float32)

    def gumbel(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """Float64 standard Gumbel, exact in both tails. Shape as given."""
        exponential = -torch.log1p(-self.uniform(shape, device=device))
        return -torch.log(exponential.clamp(min=2.0**-54))  # half the smallest non-zero uniform: finite, no bias

    def permutation(self, n_rows: int, length: int, *, device: torch.device | str = "cpu") -> Tensor:
        """(n_rows, length) int64, an independent uniform permutation per row."""
        return self.uniform((n_rows, length), device=device).argsort(dim=1)

    def _draw(
        self, shape: Sequence[int], device: torch.device | str, source: Callable[..., Tensor], dtype: torch.dtype
    ) -> Tensor:
        if self._share is not None:
            return self._draw_share(shape, source, dtype).to(device)
        if not self.is_per_sample:
            return source(tuple(shape), generator=self._generators[0], dtype=dtype).to(device)
        if shape[0] != len(self._generators):
            raise ValueError(f"an Rng of {len(self._generators)} samples cannot draw {shape[0]} rows")
        rows = [source(tuple(shape[1:]), generator=generator, dtype=dtype) for generator in self._generators]
        return torch.stack(rows).to(device)

    def _draw_share(self, shape: Sequence[int], source: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        """The share's rows out of whole blocks; the first dimension may be a multiple of the rows."""
        share = self._share
        assert share is not None
        each, rest = divmod(shape[0], share.count)
        if rest:
            raise ValueError(f"an Rng of {share.count} rows cannot draw {shape[0]}")
        drawn = [
            source((share.size(block) * each, *shape[1:]), generator=generator, dtype=dtype)
            for block, generator in zip(share.blocks, self._generators, strict=True)
        ]
        start = (share.first - share.blocks[0] * BLOCK) * each
        return torch.cat(drawn)[start : start + shape[0]]
