"""What networks are piles of, and gradient checkpointing: a block's activations computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A part that a network has many of, called once a pass with all its parameters used inside of it.

    It is the unit of gradient checkpointing and of sharded parameters. Calling it twice gives the same twice: nothing
    that moves with every call, as running statistics do, is in a block.
    """


def blocks_of(network: nn.Module) -> Iterator[Block]:
    """The outermost blocks, in the order of the network's parts; blocks inside of blocks are left out."""
    for child in network.children():
        if isinstance(child, Block):
            yield child
        else:
            yield from blocks_of(child)


def recompute(network: nn.Module) -> int:
    """Let every block keep its inputs only, and compute its inside again in the backward pass; how many there are.

    Loss and gradients are the same to the bit, dropout included: the state of the generator is kept for each block
    (`torch.utils.checkpoint`, non-reentrant). It costs up to one more forward pass of the blocks (arXiv 1604.06174).

    Raises:
        ValueError: a network without blocks.
    """
    blocks = list(blocks_of(network))
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks to compute again")
    for block in blocks:
        block.forward = _recomputed(block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return again
