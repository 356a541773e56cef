"""Learning which tokens are hard: the relative objective of hard-patch mining."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Loss
from maskgen.objectives.base import mean_of


def relative_loss(expected: Tensor, losses: Tensor, where: Tensor) -> Loss:
    """Of pairs of masked tokens of one row, -log sigmoid(expected of the harder - expected of the easier), the mean.

    HPM (arXiv 2304.05919): losses fall as training goes on, which of two is higher changes less. A pair of
    equal losses does not count; without any pair the loss is 0.

    Args:
        expected: (M,), what the network says of the masked tokens.
        losses: (M,), what they cost.
        where: (B, L) bool, their places.
    """
    said = torch.zeros(where.shape, device=where.device).masked_scatter(where, expected.float())
    cost = torch.zeros(where.shape, device=where.device).masked_scatter(where, losses.detach().float())
    is_pair = (where[:, :, None] & where[:, None] & (cost[:, :, None] > cost[:, None])).to(said.dtype)  # (B, L, L)
    ahead = said[:, :, None] - said[:, None]
    n_pairs = is_pair.sum().clamp(min=1)
    value = (F.softplus(-ahead) * is_pair).sum() / n_pairs
    is_right = ((ahead > 0) * is_pair).sum() / n_pairs
    return Loss(value, {"difficulty": mean_of(value), "difficulty/pairs right": mean_of(is_right)})


def with_difficulty(loss: Loss, expected: Tensor | None, losses: Tensor, where: Tensor) -> Loss:
    """The loss and, of a network that expects losses, the relative one: see `relative_loss`."""
    if expected is None:
        return loss
    relative = relative_loss(expected, losses, where)
    return Loss(loss.value + relative.value, {**loss.logs, **relative.logs})
