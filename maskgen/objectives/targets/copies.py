"""Copies of a network that are not trained: frozen teachers, and moving averages."""

from __future__ import annotations

import copy
import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from maskgen.core.traits import network_of

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Featured(Protocol):
    """A network with features (B, L, D) of unmasked tokens."""

    def features(self, x_0: Tensor) -> Tensor: ...


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode whose parameters are buffers: it is stored and moved, and no optimizer sees it."""
    twin = copy.deepcopy(module).eval()
    for part in twin.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach().clone())
    return twin


def featured(network: object) -> Featured:
    """The network as one with features.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(network, Featured):
        raise ValueError(f"a {type(network).__name__} has no features for a target; choose another objective.target")
    return network


@torch.no_grad()
def follow(twin: nn.Module, network: nn.Module, decay: float) -> None:
    """Move a frozen copy towards its network: twin <- decay twin + (1 - decay) network; other buffers are copied."""
    own, theirs = dict(twin.named_buffers()), dict(network.named_parameters())
    torch._foreach_lerp_([own[name] for name in theirs], [p.detach() for p in theirs.values()], 1 - decay)
    for name, buffer in network.named_buffers():
        own[name].copy_(buffer)


def require_decay(decay: float) -> None:
    """Check the decay of a moving average.

    Raises:
        ValueError: it is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of a teacher must be in [0, 1), got {decay}")


class EmaTeacher(nn.Module):
    """A moving average of the trained network (mean teacher), its decay rising to 1 over the run by half a cosine.

    decay_t = 1 - (1 - decay) (1 + cos(pi t)) / 2 for the share t of the steps (BYOL, arXiv 2006.07733; DINO, AttMask).

    Args:
        network: that is trained; the average starts as its copy.
        decay: of the first step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.average, self.decay = frozen_copy(network), decay
        self._seen = -1.0

    def update(self, network: nn.Module, progress: float) -> None:
        """Average once per step, however many micro-batches it has."""
        if progress == self._seen:
            return
        self._seen = progress
        follow(self.average, network_of(network), 1 - (1 - self.decay) * (1 + math.cos(math.pi * progress)) / 2)

    def features(self, x_0: Tensor) -> Tensor:
        """Features (B, L, D) of unmasked tokens, without gradient."""
        with torch.no_grad():
            return featured(self.average).features(x_0)
