"""Scores of the network for the mask strategies that require them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import network_of
from maskgen.processes import Absorbing, is_mask
from maskgen.strategies import Guide


def guide_by(
    process: Absorbing, model: object, x_0: Tensor, cond: Condition | None, rng: Rng, progress: float = 0.0
) -> Guide | None:
    """Scores of the network for x_0, without gradient; None for a strategy that requires none.

    The papers use a slow average of the network (AttMask's and HPM's teacher). The network itself is current and needs
    no second copy, and only the order of its scores is used. It runs in evaluation mode, without dropout. Draws nothing
    from `rng` but a fork, and nothing elsewhere.
    """
    method = process.strategy.requires
    if method is None:
        return None
    network = network_of(model)
    with torch.no_grad(), _in_evaluation(network):
        if method == "difficulty":
            return Guide(expected_losses(network, process, x_0, cond, rng.fork("guide")), progress)
        return Guide(network.attention_scores(x_0, cond).double(), progress)


@contextmanager
def _in_evaluation(network: object) -> Iterator[None]:
    """Context in which a network is in evaluation mode; a function has no modes."""
    if not isinstance(network, nn.Module):
        yield
        return
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


QUERY_TIME = 0.75
"""Time at which losses are predicted."""


def expected_losses(network: Any, process: Absorbing, x_0: Tensor, cond: Condition | None, rng: Rng) -> Tensor:
    """(B, L) float64, the losses that a network predicts for masked tokens, in the setting it learns them in.

    Two passes see x_0 under masks of opposite order, so that every token is masked in one of them where at least half
    are; a token that is never masked gets the row's mean. HPM predicts all losses with nothing masked: for a small
    network that is unrelated to the losses of masked tokens.
    """
    order = rng.uniform(x_0.shape[:2], device=x_0.device)
    t = torch.full((len(x_0),), QUERY_TIME, device=x_0.device)
    total = torch.zeros_like(order)
    n = torch.zeros_like(order)
    for noise in (order, 1 - order):
        x_t = process.corrupt(x_0, t, noise)
        is_masked = is_mask(x_t, process.mask_id)
        seen = {} if process.mask_id else {"subset": visible_of(process, x_t)}
        total += network.difficulty(x_t, t, cond, **seen).double() * is_masked
        n += is_masked
    mean = total / n.clamp(min=1)
    return torch.where(n > 0, mean, mean.sum(1, keepdim=True) / (n > 0).sum(1, keepdim=True))


def visible_of(process: Absorbing, x_t: Tensor) -> TokenSubset:
    """The tokens of x_t (B, L, D) that are not [MASK]; not counted where the process fixes their number."""
    length = x_t.shape[1]
    n_masked = process.n_masked(length)
    return TokenSubset.of(~is_mask(x_t, 0), None if n_masked is None or n_masked == length else length - n_masked)
