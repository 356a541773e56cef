"""State of the masked decoding loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Denoise, Prediction
from maskgen.core.rng import Rng
from maskgen.samplers.masked.source import Sampled, TokenSource
from maskgen.samplers.masked.unmasking import Clock


@dataclass(frozen=True)
class Block:
    """What is constant over the steps of a block.

    Attributes:
        denoise, mask_id, grid, source: arguments of `MaskedSampler`.
        by: temperature and nucleus of the tokens.
        allowed: (L, V) bool, tokens that a position may have; None for all.
        rng: random stream of the block.
        is_open: (B, L) bool, its positions.
    """

    denoise: Denoise
    mask_id: int
    grid: tuple[int, ...]
    source: TokenSource
    by: Sampled
    allowed: Tensor | None
    rng: Rng
    is_open: Tensor

    def within_streams(self, prediction: Categorical) -> Categorical:
        """The prediction with logit -inf for tokens that the position cannot have: those of other streams, [MASK]."""
        if self.mask_id < prediction.logits.shape[-1] and len(prediction.logits):
            column = torch.tensor([self.mask_id], device=prediction.logits.device)
            prediction = replace(prediction, logits=prediction.logits.index_fill(-1, column, -torch.inf))
        if self.allowed is None or not len(prediction.logits):
            return prediction
        assert prediction.where is not None
        place = prediction.where.nonzero()[:, 1]
        return replace(prediction, logits=prediction.logits.masked_fill(~self.allowed[place], -torch.inf))


@dataclass(frozen=True)
class State:
    """x_t (B, L) or (B, L, D); confidence (B, L) float64, each token's probability when it was revealed; the clock."""

    x_t: Tensor
    confidence: Tensor
    clock: Clock


@dataclass(frozen=True)
class Reveal:
    """The tokens that a step reveals.

    Attributes:
        where: (B, L) bool, their positions.
        n: (B,) int64, their number, on the CPU.
        queried: (B, L) bool, the M positions that the network was evaluated at: `where` and perhaps more.
        prediction, tokens: of these, packed; the token (M,) or (M, D) of each, None if decoded after the choice.
    """

    where: Tensor
    n: Tensor
    queried: Tensor
    prediction: Prediction
    tokens: Tensor | None


def tokens_of(block: Block, reveal: Reveal) -> Tensor:
    """The tokens at `reveal.where`, packed, (N,) or (N, D)."""
    is_chosen = reveal.where[reveal.queried]
    tokens = None if reveal.tokens is None else reveal.tokens[is_chosen]
    if tokens is not None and not block.source.is_recorded:
        return tokens
    assert isinstance(reveal.prediction, Categorical)
    if not bool(reveal.n.any()):
        return torch.zeros(0, dtype=torch.int64, device=reveal.where.device)
    return block.source.reveal(Categorical(reveal.prediction.logits[is_chosen], reveal.where), tokens, block.by)
