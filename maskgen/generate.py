"""From labels and seeds to images: one place for previews, evaluation and the sampling program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.eval.features import to_uint8
from maskgen.guidance import Guidance
from maskgen.predictions import Condition, Denoiser
from maskgen.rng import Rng
from maskgen.samplers import MaskedSampler
from maskgen.samplers.masked import OnStep
from maskgen.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class Generator:
    """A network with all that sampling from it needs."""

    denoiser: Denoiser
    tokenizer: ImageTokenizer
    sampler: MaskedSampler
    guidance: Guidance
    device: torch.device

    @torch.no_grad()
    def tokens(
        self,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """(B, L) int64, one row a seed.

        Args:
            seeds: of the rows; a row depends on its own only.
            labels: (B,) int64, None for a network without classes.
            known: (B, L) int64 with given tokens, -1 where one is wanted.
            on_step: watches the sampler.
        """
        mask_id, grid = self.tokenizer.vocab_size, self.tokenizer.grid
        x_1 = torch.full((len(seeds), grid[0] * grid[1]), mask_id, device=self.device)
        if known is not None:
            known = known.to(self.device)
            x_1 = torch.where(known >= 0, known, x_1)
        cond = None if labels is None else Condition(labels.to(self.device))
        denoise = self.guidance.bind(self.denoiser, cond)
        return self.sampler(denoise, x_1, Rng.per_sample(seeds), mask_id=mask_id, grid=grid, on_step=on_step)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> images (B, C, H, W) uint8 on the CPU."""
        return to_uint8(self.tokenizer.decode(tokens)).cpu()

    def images(self, seeds: Sequence[int], labels: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """(B, C, H, W) uint8 on the CPU, one a seed."""
        return self.decode(self.tokens(seeds, labels, known))
