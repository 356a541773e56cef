"""Token mixing by a learned matrix over positions (MLP-Mixer, masked mixers)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer


class TokenMixing(TokenMixer):
    """out(W value(x)): tokens are mixed by weights (H, L, L) of their positions (masked mixers, arXiv 2409.01482).

    Each of H groups of channels has its own matrix. Entries that an attention pattern does not allow count as zero, so
    the layer obeys the same patterns as attention. It works on L tokens only, without rotary positions or dropped
    tokens: positions are rows of the matrix.

    Args:
        width: D.
        length: L.
        heads: H, a divisor of D.
        has_bias: of both projections.
    """

    def __init__(self, width: int, length: int, heads: int = 1, has_bias: bool = True) -> None:
        super().__init__()
        if min(width, length, heads) < 1 or width % heads:
            raise ValueError(
                f"width must be a multiple of heads and all sizes positive, got {width}, {heads} and length {length}"
            )
        self.fixed_length, self.heads = length, heads
        self.value = nn.Linear(width, width, bias=has_bias)
        self.mixing = nn.Parameter(torch.empty(heads, length, length))
        self.out = nn.Linear(width, width, bias=has_bias)
        nn.init.normal_(self.mixing, std=length**-0.5)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: AttentionMask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); `mask` is `causal` or bool.

        Raises:
            ValueError: another number of tokens, rotary positions, a cache, or a float mask.
        """
        if x.shape[1] != self.fixed_length or rotation is not None or cache is not None:
            raise ValueError(
                f"token mixing is for rows of {self.fixed_length} tokens without rotary positions or a cache, got "
                f"{x.shape[1]} tokens"
            )
        value = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D / H)
        mixed: Tensor = self.out((self._masked(mask) @ value).transpose(1, 2).flatten(2))
        return mixed

    def _masked(self, mask: AttentionMask) -> Tensor:
        """(H, L, L) or (B, H, L, L), zero where the mask does not allow."""
        if mask is None:
            return self.mixing
        if isinstance(mask, str):
            return self.mixing.tril()
        if mask.dtype != torch.bool:
            raise ValueError("token mixing has no scores that a float mask could be added to; use a bool mask")
        return torch.where(mask, self.mixing, 0)
