"""MaskSketch: tokens whose attention maps are like those of a sketch (Bashkirova et al., arXiv 2302.05496)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Denoise
from maskgen.core.rng import Rng
from maskgen.processes import put_masks
from maskgen.samplers.masked.loop import OnStep

AttentionMaps = Callable[[Tensor], Tensor]
"""Tokens (B, L) without [MASK] -> attention weights of some layers, (B, N, L, L), N maps in all."""


@dataclass(frozen=True)
class SketchSampler:
    """Replaces a share of a sketch's tokens step by step, keeping its self-attention.

    A step draws all masked tokens, then masks again those whose attention is least like the sketch's and those of the
    least confidence: floor(structure n) and floor((1 - structure) n) tokens, of which some may be the same. Any token
    may be masked again. n falls linearly from `most` to `least` of the tokens that are masked at the start, and the
    last step keeps what it draws. Two passes a step, three with guidance.

    Args:
        steps: T; published 500 to 1000.
        structure: lambda, the weight of structure against confidence; published 0.9.
        most, least: shares of the tokens that are masked in the first and the last step.
        temperature: of the tokens; 0, as published, takes the mode.
    """

    steps: int = 50
    structure: float = 0.9
    most: float = 0.95
    least: float = 0.35
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.structure <= 1:
            raise ValueError(f"structure must lie in [0, 1], got {self.structure}")
        if not 0 <= self.least <= self.most <= 1 or not self.most:
            raise ValueError(f"0 <= least <= most <= 1 and most > 0 are needed, got {self.least} and {self.most}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        maps: AttentionMaps,
        sketch: Tensor,
        rng: Rng,
        *,
        mask_id: int,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sketches (B, L) int64, a row for each sample -> tokens (B, L).

        Args:
            denoise: the network with condition and guidance bound.
            maps: its attention with the same condition.
            sketch: tokens of the sketches.
            rng: of the samples.
            mask_id: id of [MASK].
            on_step: called after each step.
        """
        length, target = sketch.shape[1], maps(sketch)
        n_start = max(round(self.most * length), 1)
        is_masked = _lowest(rng.uniform(sketch.shape, device=sketch.device), n_start)
        x = sketch
        for step in range(self.steps):
            ratio = is_masked.double().mean(1).cpu()
            everywhere = torch.ones_like(is_masked)
            answer = denoise(put_masks(x, is_masked, mask_id), ratio, where=everywhere)
            prediction = categorical_at(answer, everywhere)
            drawn = prediction.sample(rng, self.temperature).view_as(x)
            x = torch.where(is_masked, drawn, x)
            if on_step is not None:
                on_step(step + 1, self.steps, x)
            if step + 1 == self.steps:
                break
            confidence = prediction.log_prob(x.flatten()).view_as(x).double().exp()
            n = int(n_start * (self.least + (1 - (step + 1) / self.steps) * (self.most - self.least)))
            unlike = _lowest(_scaled(similarity(target, maps(x))), int(self.structure * n))
            is_masked = unlike | _lowest(_scaled(confidence), int((1 - self.structure) * n))
        return x


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """sum_m a_nm log b_nm + b_nm log a_nm, mean over the maps (B, N, L, L) -> (B, L) float64; higher is more alike."""
    tiny = torch.finfo(torch.float32).tiny
    a, b = a.double().clamp(min=tiny), b.double().clamp(min=tiny)
    return (a * b.log() + b * a.log()).sum(-1).mean(1)


def _scaled(score: Tensor) -> Tensor:
    """(B, L) to 0 ... 1 in each row."""
    low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
    return (score - low) / (high - low).clamp(min=1e-12)


def _lowest(score: Tensor, n: int) -> Tensor:
    """(B, L) bool, the n lowest of each row."""
    rank = score.argsort(stable=True, dim=1).argsort(1)
    return rank < n
