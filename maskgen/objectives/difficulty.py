"""The relative objective of hard-patch mining: which of two masked tokens has the higher loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Loss
from maskgen.objectives.base import mean_of


def relative_loss(expected: Tensor, losses: Tensor, where: Tensor) -> Loss:
    """Mean of -log sigmoid(predicted loss of the harder - that of the easier) over pairs of masked tokens of a row.

    HPM (arXiv 2304.05919): losses fall during training, their order changes less. A pair of equal losses does not
    count; without any pair the loss is 0.

    Args:
        expected: (M,), losses predicted by the network for the masked tokens.
        losses: (M,), their losses.
        where: (B, L) bool, their positions.
    """
    predicted = torch.zeros(where.shape, device=where.device).masked_scatter(where, expected.float())
    cost = torch.zeros(where.shape, device=where.device).masked_scatter(where, losses.detach().float())
    is_pair = (where[:, :, None] & where[:, None] & (cost[:, :, None] > cost[:, None])).to(predicted.dtype)  # (B, L, L)
    ahead = predicted[:, :, None] - predicted[:, None]
    n_pairs = is_pair.sum().clamp(min=1)
    value = (F.softplus(-ahead) * is_pair).sum() / n_pairs
    is_right = ((ahead > 0) * is_pair).sum() / n_pairs
    return Loss(value, {"difficulty": mean_of(value), "difficulty/pairs right": mean_of(is_right)})


def with_difficulty(loss: Loss, expected: Tensor | None, losses: Tensor, where: Tensor) -> Loss:
    """The loss, plus `relative_loss` for a network that predicts losses (`expected` is not None)."""
    if expected is None:
        return loss
    relative = relative_loss(expected, losses, where)
    return Loss(loss.value + relative.value, {**loss.logs, **relative.logs})
