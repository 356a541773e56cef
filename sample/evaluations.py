"""NFE, the number of function evaluations: counted, and scheduled as papers count it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.pipelines.generator import Generator
from maskgen.samplers import FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.adaptive import Adaptive
from maskgen.samplers.masked.unmasking import Clock, Move, One

ASKED, SCHEDULED = "evaluations_per_sample", "evaluations_scheduled"


class Evaluations:
    """A denoiser that counts the rows it evaluates and passes everything else on."""

    def __init__(self, denoiser: Any, count: list[int] | None = None) -> None:
        self._denoiser = denoiser
        self._count = [0] if count is None else count

    def cached(self) -> Evaluations:
        """The same count of a denoiser that keeps keys and values."""
        return Evaluations(self._denoiser.cached(), self._count)

    @property
    def n_rows(self) -> int:
        return self._count[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, x_t: Tensor, *arguments: Any, where: Tensor | None = None, **more: Any) -> Any:
        self._count[0] += len(x_t) if where is None else int(where.any(1).sum())
        return self._denoiser(x_t, *arguments, **more, **({} if where is None else {"where": where}))


def scheduled(sampler: MaskedSampler | FieldSampler, guidance: Guidance) -> int | None:
    """Passes of a network in a decoding: one a step and two where guidance is on, whether a row asks or not.

    That is the number of function evaluations of eMIGM (arXiv 2503.07197, section 3.3). None where steps or times
    depend on what is drawn, for a decoding in blocks, and for the field of a Gaussian process: it asks every row in
    every step, so what is counted is this number.
    """
    if isinstance(sampler, FieldSampler) or isinstance(sampler.unmasking, Adaptive | One):
        return None
    if not sampler.layout.is_single(1 << 20):
        return None
    unmasking, n_steps, rng, total = sampler.unmasking, sampler.steps, Rng.per_sample([0]), 0
    t, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for step in range(n_steps):
        clock = Clock(step, n_steps, t, none, none, 0)
        s = unmasking.next_time(clock, rng)
        total += 1 + guidance.is_on(unmasking.query_time(Move(clock, s, torch.zeros_like(s), none)))
        t = s
    return total


def as_published(generator: Generator, asked: float) -> float | None:
    """`scheduled` of a generator; of the field of a Gaussian process what was counted, `asked` a sample."""
    if generator.process is not None:
        return asked
    return scheduled(generator.effective_sampler(), generator.guidance)
