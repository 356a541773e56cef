"""Gradient checkpointing: the activations inside a block are recomputed in the backward pass instead of stored."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module, ABC):
    """A part of which a network has many, called once per pass, with all its parameters used inside that call.

    It is the unit of gradient checkpointing, of parameter sharding and of placement over devices. Calling it twice has
    the same result twice: it holds no state that changes with each call, such as running statistics. A block of another
    library becomes one by `Recomputable.register`.
    """


@runtime_checkable
class RecomputesItself(Protocol):
    """A network of another library, with gradient checkpointing of its own."""

    def recompute(self) -> int:
        """Turn it on; the number of parts."""


def named_blocks(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, Recomputable]]:
    """The outermost recomputable parts by name, in the order of the network's parts; nested ones are left out."""
    for name, child in network.named_children():
        if isinstance(child, Recomputable):
            yield prefix + name, child
        else:
            yield from named_blocks(child, f"{prefix}{name}.")


def blocks_of(network: nn.Module) -> Iterator[Recomputable]:
    """`named_blocks` without their names."""
    return (block for _, block in named_blocks(network))


def recompute(network: nn.Module) -> int:
    """Make every block store its inputs only and recompute its activations in the backward pass; returns their number.

    Loss and gradients are bit-identical, dropout included: the generator's state is stored for each block
    (`torch.utils.checkpoint`, non-reentrant). It costs up to one more forward pass of the blocks (arXiv 1604.06174).

    Raises:
        ValueError: a network without blocks.
    """
    if isinstance(network, RecomputesItself):
        return network.recompute()
    blocks = list(blocks_of(network))
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks to recompute")
    for block in blocks:
        block.forward = _recomputed(block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., object]) -> Callable[..., object]:
    def again(*arguments: object, **options: Any) -> object:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return again
