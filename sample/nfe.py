"""Number of function evaluations (NFE) of a network: counted while sampling, and as papers count them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.pipelines.generator import Generator
from maskgen.samplers import FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.unmasking import Clock, Move

NFE, SCHEDULED_NFE = "nfe_per_sample", "nfe_scheduled"


class CountedDenoiser:
    """A denoiser that counts the rows it is evaluated on; all else is delegated to the denoiser that it wraps."""

    def __init__(self, denoiser: Any, count: list[int] | None = None) -> None:
        self._denoiser = denoiser
        self._count = [0] if count is None else count

    def cached(self) -> CountedDenoiser:
        """The cached form of the denoiser, with the same counter."""
        return CountedDenoiser(self._denoiser.cached(), self._count)

    @property
    def n_rows(self) -> int:
        """Rows evaluated so far."""
        return self._count[0]

    def __getattr__(self, name: str) -> object:
        return getattr(self._denoiser, name)

    def __call__(self, x_t: Tensor, *arguments: object, where: Tensor | None = None, **more: object) -> object:
        self._count[0] += len(x_t) if where is None else int(where.any(1).sum())
        return self._denoiser(x_t, *arguments, **more, **({} if where is None else {"where": where}))


def scheduled_nfe(sampler: MaskedSampler | FieldSampler, guidance: Guidance) -> int | None:
    """Forward passes of a decoding: one per step, two with guidance, also in steps that reveal nothing in a row.

    This is the NFE of eMIGM (arXiv 2503.07197, section 3.3). None if the number of steps or their times depend on the
    draws, for a decoding in blocks, and for Gaussian processes, which evaluate every row in every step: there the
    counted NFE is this number.
    """
    if isinstance(sampler, FieldSampler) or not sampler.unmasking.uses_steps or not sampler.layout.is_single(1 << 20):
        return None
    unmasking, n_steps, rng, total = sampler.unmasking, sampler.steps, Rng.per_sample([0]), 0
    t, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for step in range(n_steps):
        clock = Clock(step, n_steps, t, none, none, 0)
        s = unmasking.next_time(clock, rng)
        total += 1 + guidance.is_on(unmasking.query_time(Move(clock, s, torch.zeros_like(s), none)))
        t = s
    return total


def published_nfe(generator: Generator, counted: float) -> float | None:
    """`scheduled_nfe` of a generator; for a Gaussian process the NFE per sample that was `counted`."""
    if generator.process is not None:
        return counted
    return scheduled_nfe(generator.effective_sampler(), generator.guidance)
