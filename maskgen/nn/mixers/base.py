"""The interface of token mixers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

AttentionMask = Tensor | Literal["causal"] | None
"""bool, True where a query attends to a key, or float, added to the scores: broadcast to (B, H, L, n). Or `causal`."""


KeyValues = tuple[Tensor, Tensor]
"""Keys and values, (B, H_kv, n, d) each, rotated to their positions."""


class LayerCache:
    """Keys and values of one attention layer."""

    def __init__(self, kept: KeyValues | None = None) -> None:
        self.kept = kept

    def extend(self, keys: Tensor, values: Tensor) -> KeyValues:
        """Append those of new tokens (B, H_kv, L, d); returns all of them."""
        if self.kept is not None:
            keys, values = torch.cat([self.kept[0], keys], 2), torch.cat([self.kept[1], values], 2)
        self.kept = keys, values
        return self.kept


class TokenMixer(nn.Module, ABC):
    """Exchanges information between tokens: (B, L, D) -> (B, L, D).

    Attributes:
        fixed_length: the only L it works on; None for any.
        has_cache: whether it can continue a sequence from cached states.
    """

    fixed_length: int | None = None
    has_cache: bool = False

    @abstractmethod
    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: AttentionMask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        Args:
            x: tokens.
            rotation: rotary angles, (L, r/2) or (B, L, r/2) complex.
            mask: which tokens may influence which.
            cache: states of the tokens before x; those of x are appended.
        """

    def weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, L), attention from each token to each, mean over the heads.

        Raises:
            ValueError: a mixer without attention weights.
        """
        return self.head_weights(x, rotation).mean(1)

    def head_weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:  # noqa: ARG002 - of those that have them
        """(B, L, D) -> (B, H, L, L), attention from each token to each.

        Raises:
            ValueError: a mixer without attention weights.
        """
        raise ValueError(f"{type(self).__name__} has no attention weights")
