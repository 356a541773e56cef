"""Attention weights of a network's layers while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from maskgen.nn.mixers.self_attention import SelfAttention
from maskgen.nn.mixers.subspace import SubspaceAttention


def attending(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that have attention weights, in order."""
    return [module for module in network.modules() if isinstance(module, SelfAttention | SubspaceAttention)]


def watched_attention(layers: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Weights (B, H, S, S) of each of the layers that is computed when `run` is called, in order of computation.

    Args:
        layers: some of `attending`.
        run: computes the network once.
    """
    found: list[Tensor] = []

    def seen(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, SelfAttention | SubspaceAttention)
        found.append(layer.head_weights(given[0], given[1] if len(given) > 1 else None))

    hooks = [layer.register_forward_pre_hook(seen) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
