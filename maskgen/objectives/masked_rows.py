"""Masked rows of a batch, their complement, and the loss on tokens that are predicted right already."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical
from maskgen.core.rng import Rng
from maskgen.objectives.base import number_of
from maskgen.processes import Absorbing, put_masks


@dataclass(frozen=True)
class MaskedRows:
    """A batch of masked rows.

    Attributes:
        t: (B,) times, or (B, S) of each stream.
        weight: of the loss, of the shape of t.
        x_t: (B, L) tokens with [MASK].
        noise: (B, L), the lowest masked first.
        is_masked: (B, L) bool.
        is_counted: (B, L) bool, False for tokens that are not predicted: dropped streams, which are masked, and
            prompts, which are not; None for all.
    """

    t: Tensor
    weight: Tensor
    x_t: Tensor
    noise: Tensor
    is_masked: Tensor
    is_counted: Tensor | None = None


def with_complement(draw: MaskedRows, batch: Batch, process: Absorbing, *, is_bound: bool) -> tuple[MaskedRows, Batch]:
    """Each row twice, 2B rows: as drawn, and with exactly its other tokens masked (LLaDA 2.0, arXiv 2512.15745).

    A mask ratio r(t) becomes 1 - r, at its own time. If r has the density 1 / r'(t), a bound's weight r' / r of the
    first row and r' / (1 - r) of the second make each an unbiased estimate of the same bound.

    Args:
        draw, batch: of B rows.
        process: that masked them.
        is_bound: weights are those of a bound.
    """
    ratio = process.schedule.mask_ratio(draw.t.double())
    t = process.schedule.inverse(ratio).to(draw.t)  # alpha of the complement is the ratio
    weight = (draw.weight * ratio / (1 - ratio)).to(draw.weight) if is_bound else draw.weight
    counted = torch.ones_like(draw.is_masked) if draw.is_counted is None else draw.is_counted
    is_masked = torch.where(counted, ~draw.is_masked, draw.is_masked)
    x_t = put_masks(batch.x_0, is_masked, process.mask_id)
    both = MaskedRows(
        t=torch.cat([draw.t, t]),
        weight=torch.cat([draw.weight, weight]),
        x_t=torch.cat([draw.x_t, x_t]),
        noise=torch.cat([draw.noise, -draw.noise]),
        is_masked=torch.cat([draw.is_masked, is_masked]),
        is_counted=None if draw.is_counted is None else counted.repeat(2, 1),
    )
    return both, replace(
        batch,
        x_0=batch.x_0.repeat(2, 1),
        cond=None if batch.cond is None else batch.cond.join(batch.cond),
        documents=None if batch.documents is None else batch.documents.repeat(2, 1),
        is_answer=None if batch.is_answer is None else batch.is_answer.repeat(2, 1),
    )


def with_random_lengths(draw: MaskedRows, batch: Batch, share: float, rng: Rng) -> tuple[MaskedRows, Batch]:
    """Rows of which a share ends after a random number of tokens, U{1..L} (LLaDA, arXiv 2502.09992).

    The rest of such a row is a document of its own, so no token of the row attends to it, and is not counted.
    """
    n_rows, length = batch.x_0.shape[:2]
    is_cut, place = rng.fork("length").uniform((n_rows, 2), device=batch.x_0.device).unbind(1)
    n = torch.where(is_cut < share, 1 + (place * length).long(), length)
    inside = torch.arange(length, device=n.device) < n[:, None]
    documents = torch.zeros_like(batch.x_0) if batch.documents is None else batch.documents
    counted = inside if draw.is_counted is None else draw.is_counted & inside
    return replace(draw, is_counted=counted), replace(batch, documents=torch.where(inside, documents, -1))


def entropy_where_right(logits: Tensor, is_right: Tensor, is_training: bool) -> Tensor:
    """Mean entropy in nats of the predictions whose most likely token is right: CAP of LLaDA 2.0 (arXiv 2512.15745).

    Args:
        logits: (M, V).
        is_right: (M,), 1 where it is.
        is_training: the mean is over all processes.
    """
    entropy = Categorical(logits).entropy()[is_right > 0]
    return entropy.sum() / number_of(entropy, is_training)
