"""Input inversion: how much of a text its last hidden vectors determine, found by gradient descent on the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.core.rng import Rng

STEPS, RATE = 100, 0.1
"""Of Adam; the rate is in standard deviations of the embedding table."""


def inverted(
    features_of: Callable[[Tensor], Tensor], ids: Tensor, table: Tensor, rng: Rng, steps: int = STEPS
) -> Tensor:
    """Tokens (B, L) whose features are nearest to those of `ids`, found from random embeddings.

    Embeddings are moved by Adam to lower the mean absolute difference of the features; then each is replaced by the
    nearest row of the table (masked mixers, arXiv 2409.01482: input representation accuracy). Rows are independent.

    Args:
        features_of: embeddings (B, L, D) -> features (B, L, D').
        ids: (B, L) int64.
        table: (V, D) embeddings of the tokens.
        rng: of the start.
        steps: of Adam.
    """
    table = table.detach()
    with torch.no_grad():
        target = features_of(table[ids])
    scale = float(table.std())
    vectors = (table.mean(0) + scale * rng.normal((*ids.shape, table.shape[1]), device=table.device)).requires_grad_()
    optimizer = torch.optim.Adam([vectors], RATE * scale)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (features_of(vectors) - target).abs().mean((1, 2)).sum()
        loss.backward()
        optimizer.step()
    return torch.cdist(vectors.detach(), table.expand(len(ids), -1, -1)).argmin(-1)
