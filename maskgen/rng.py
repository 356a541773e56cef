"""Randomness as a value: one stream for a batch, or one for each sample of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fold(*keys: int | str) -> int:
    """A 63-bit seed from any keys (seed, epoch, index, ...): equal keys give equal seeds, others unrelated ones."""
    plain = tuple(key if isinstance(key, str) else int(key) for key in keys)  # NumPy integers are printed otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Rng:
    """Random draws for the rows of a batch.

    `Rng.stream(seed)` draws a batch from one generator. `Rng.per_sample(seeds)` has one generator a row, so what
    a row gets depends on its own seed alone, whatever the batch. All draws are made on the CPU and moved, so
    they are the same on every device.
    """

    def __init__(self, seeds: tuple[int, ...], *, is_per_sample: bool) -> None:
        self._seeds = seeds
        self.is_per_sample = is_per_sample
        self._generators = [torch.Generator().manual_seed(fold("rng", seed)) for seed in seeds]

    @classmethod
    def stream(cls, *keys: int | str) -> Rng:
        """One stream, from any keys: `Rng.stream(seed, step, rank)`."""
        return cls((fold(*keys),), is_per_sample=False)

    @classmethod
    def per_sample(cls, seeds: Sequence[int]) -> Rng:
        """One stream a row; draws then have `len(seeds)` rows."""
        return cls(tuple(seeds), is_per_sample=True)

    @property
    def n_rows(self) -> int:
        """Streams there are: rows that can be drawn for, of an Rng of samples."""
        return len(self._seeds)

    @property
    def generators(self) -> list[torch.Generator] | torch.Generator:
        """One a row, or the one of the stream: for libraries that draw for themselves."""
        return self._generators if self.is_per_sample else self._generators[0]

    def fork(self, *keys: int | str) -> Rng:
        """Independent streams of the same form, for another purpose; does not advance this one."""
        return Rng(tuple(fold(seed, *keys) for seed in self._seeds), is_per_sample=self.is_per_sample)

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
        """(n_rows, length) int64, an independent uniform permutation a row."""
        return self.uniform((n_rows, length), device=device).argsort(dim=1)

    def _draw(
        self, shape: Sequence[int], device: torch.device | str, source: Callable[..., Tensor], dtype: torch.dtype
    ) -> Tensor:
        if not self.is_per_sample:
            return source(tuple(shape), generator=self._generators[0], dtype=dtype).to(device)
        if shape[0] != len(self._generators):
            raise ValueError(f"an Rng of {len(self._generators)} samples cannot draw {shape[0]} rows")
        rows = [source(tuple(shape[1:]), generator=generator, dtype=dtype) for generator in self._generators]
        return torch.stack(rows).to(device)
