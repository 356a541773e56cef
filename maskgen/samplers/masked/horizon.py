"""A limit to the masked tokens that a network sees after the block that is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Categorical, Denoise


@dataclass(frozen=True)
class Horizon:
    """A denoiser that is given each row up to an end of its own; a row with known tokens after it is given whole.

    A masked language model that was not trained to generate predicts better if a few masks stand before its separator
    than if the whole rest of the row is masked (arXiv 2406.04823, section 3.1).

    Args:
        denoise: the network.
        ends: (B,) int64, how many tokens of a row are given.
        mask_id: V.
    """

    denoise: Denoise
    ends: Tensor
    mask_id: int

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        """Logits (M, V) at `where` (B, L), nowhere after an end; by default all of the row, so there is no end."""
        if where is None:
            where = torch.ones_like(x_t, dtype=torch.bool)
        place = torch.arange(x_t.shape[1], device=x_t.device)
        last = torch.where((x_t != self.mask_id) | where, place, -1).amax(1) + 1
        ends = torch.maximum(self.ends.to(last), last)
        logits: Tensor | None = None
        for end in ends[where.any(1)].unique().tolist():
            own = where & (ends == end)[:, None]
            found = categorical_at(self.denoise(x_t[:, :end], t, where=own[:, :end]), own[:, :end]).logits
            if logits is None:
                logits = found.new_empty(int(where.sum()), found.shape[-1])
            logits[own[where]] = found
        return Categorical(torch.zeros(0, 2, device=x_t.device) if logits is None else logits, where)


def up_to_horizon(denoise: Denoise, blocks: Tensor, index: int, lookahead: int, mask_id: int) -> Denoise:
    """The denoiser in a block, limited to `lookahead` tokens after it.

    Args:
        denoise: the network.
        blocks: (B, L) int64, the block of each position.
        index: of the block.
        lookahead: tokens.
        mask_id: V.
    """
    place = torch.arange(blocks.shape[1], device=blocks.device)
    last = torch.where(blocks <= index, place, -1).amax(1)
    return Horizon(denoise, (last + 1 + lookahead).clamp(max=blocks.shape[1]), mask_id)
