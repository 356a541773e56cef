"""Retrieval by frozen embeddings: which passage is the second half of this one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.evaluation.probes.classifiers import Accuracy

ROUNDS, RATE, TEMPERATURE = 200, 1e-3, 0.1
"""Of the contrastive head: most steps of AdamW, learning rate, temperature."""
HELD_OUT = 0.2
"""Share of the training pairs that decide when to stop."""


@dataclass(frozen=True)
class Pairs:
    """Embeddings of the first and second halves of N passages, (N, D) each.

    Raises:
        ValueError: other shapes, or fewer than two pairs.
    """

    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        if self.first.ndim != 2 or self.first.shape != self.second.shape or len(self.first) < 2:
            raise ValueError(
                "retrieval needs two halves (N, D) of at least 2 passages, got "
                f"{tuple(self.first.shape)} and {tuple(self.second.shape)}"
            )

    def rows(self, some: slice) -> Pairs:
        """Some of the passages."""
        return Pairs(self.first[some], self.second[some])

    def mapped(self, maps: Sequence[Tensor]) -> Pairs:
        """First halves times one matrix (D, D'), second halves times another."""
        return Pairs(self.first @ maps[0], self.second @ maps[1])

    def standardised(self, like: Pairs) -> Pairs:
        """Each channel with the mean and standard deviation of the halves `like`."""
        both = torch.cat([like.first, like.second])
        mean, deviation = both.mean(0), both.std(0).clamp(min=1e-6)
        return Pairs((self.first - mean) / deviation, (self.second - mean) / deviation)


def nearest_halves(pairs: Pairs) -> Accuracy:
    """Top-1 by cosine similarity: the share of first halves whose nearest second half is their own."""
    similar = F.normalize(pairs.first, dim=1) @ F.normalize(pairs.second, dim=1).mT
    right = similar.argmax(1) == torch.arange(len(similar), device=similar.device)
    return Accuracy(float(right.double().mean()), len(similar))


def retrieval_head(train: Pairs, test: Pairs) -> Accuracy:
    """Top-1 after a linear map of each half, trained by InfoNCE in both directions on frozen embeddings.

    As for masked mixers (arXiv 2409.01482), but linear: the maps start as the identity, so the start is
    `nearest_halves`, and the step with the lowest loss on held-out training pairs is taken. Every pair is compared
    with all others. Embeddings are standardised by those of `train`.
    """
    train, test = train.standardised(train), test.standardised(train)
    n_held_out = max(2, int(HELD_OUT * len(train.first)))
    if len(train.first) - n_held_out < 2:
        return nearest_halves(test)
    fitted, held_out = train.rows(slice(n_held_out, None)), train.rows(slice(n_held_out))
    maps = [torch.eye(train.first.shape[1], requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.AdamW(maps, RATE, weight_decay=0.0)
    lowest, best = float("inf"), [one.detach().clone() for one in maps]
    for _ in range(ROUNDS):
        with torch.no_grad():
            loss = float(matching_loss(held_out.mapped(maps)))
        if loss < lowest:
            lowest, best = loss, [one.detach().clone() for one in maps]
        optimizer.zero_grad()
        matching_loss(fitted.mapped(maps)).backward()
        optimizer.step()
    return nearest_halves(test.mapped(best))


def matching_loss(pairs: Pairs) -> Tensor:
    """Mean cross-entropy of finding the other half among all, in both directions."""
    first, second = F.normalize(pairs.first, dim=1), F.normalize(pairs.second, dim=1)
    scores, own = first @ second.mT / TEMPERATURE, torch.arange(len(first))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)) / 2
