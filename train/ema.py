"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import like, local


def decay_at(step: int, limit: float) -> float:
    """min(limit, (1 + s) / (10 + s)) with s = step - 1 and nothing kept at step 1; `step` counts from 1."""
    s = step - 1
    return min(limit, (1 + s) / (10 + s)) if s > 0 else 0.0


class Ema:
    """The average of a module's trained parameters; buffers (codebooks, statistics) are copied as they are.

    With `limit` 0 it is the module itself.
    """

    def __init__(self, module: nn.Module, limit: float) -> None:
        self.module = module
        self.limit = limit
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in trained.items()} if limit else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1)."""
        if self.limit:
            weights = [local(p.detach()) for name, p in self.module.named_parameters() if name in self.average]
            averages = [local(value) for value in self.average.values()]
            torch._foreach_lerp_(averages, weights, 1 - decay_at(step, self.limit))

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state with averaged parameters."""
        return {**self.module.state_dict(), **self.average}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the averaged parameters from a state."""
        for name, value in self.average.items():
            value.copy_(like(tensors[name], value))

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The module in evaluation mode with averaged weights; restored on exit."""
        was_training = self.module.training
        parameters = dict(self.module.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in self.average}
        try:
            with torch.no_grad():
                for name, value in self.average.items():
                    parameters[name].copy_(value)
            yield self.module.eval()
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)
            self.module.train(was_training)
