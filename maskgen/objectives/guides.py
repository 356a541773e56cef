"""What a network says to the mask strategies that ask it."""

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
    process: Absorbing, model: Any, x_0: Tensor, cond: Condition | None, rng: Rng, progress: float = 0.0
) -> Guide | None:
    """What the network itself says of x_0 to the process's strategy, without gradient; None for one that does not ask.

    The papers ask a slow average of the network (AttMask's and HPM's teacher). The network itself is current, takes no
    second copy, and what it says is used for its order alone. It is asked as in evaluation, with nothing dropped out.
    Draws nothing from `rng` but a fork, and nothing elsewhere.
    """
    method = process.strategy.requires
    if method is None:
        return None
    network = network_of(model)
    with torch.no_grad(), _in_evaluation(network):
        if method == "difficulty":
            return Guide(expected_losses(network, process, x_0, cond, rng.fork("guide")), progress)
        return Guide(getattr(network, method)(x_0, cond).double(), progress)


@contextmanager
def _in_evaluation(network: Any) -> Iterator[None]:
    """The network in evaluation mode, and then again as it was; a function has no modes."""
    if not isinstance(network, nn.Module):
        yield
        return
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


ASKED_AT = 0.75
"""The time at which losses are asked for."""


def expected_losses(network: Any, process: Absorbing, x_0: Tensor, cond: Condition | None, rng: Rng) -> Tensor:
    """(B, L) float64, the losses that a network expects of tokens that are masked; asked as it learns them.

    Two passes see x_0 under masks of opposite order, so that every token is masked in one of them where at least half
    are; what is never masked is taken for average. HPM asks for all losses with nothing masked: what a small network
    says then is in no relation to what it has learned of masked tokens.
    """
    order = rng.uniform(x_0.shape[:2], device=x_0.device)
    t = torch.full((len(x_0),), ASKED_AT, device=x_0.device)
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
    """The tokens of x_t (B, L, D) that are not [MASK], uncounted where the process says how many there are."""
    length = x_t.shape[1]
    n_masked = process.n_masked(length)
    return TokenSubset.of(~is_mask(x_t, 0), None if n_masked is None or n_masked == length else length - n_masked)
