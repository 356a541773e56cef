"""Decoders over all tokens of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.nn.published_blocks import ViTSizes


class JointDecoder(nn.Module):
    """Encoded tokens at their positions, a fill vector at the others, then blocks over all (MAE, MAGE, MAR).

    Args:
        width_in: width of the encoder.
        sizes: of the decoder's blocks.
    """

    def __init__(self, width_in: int, sizes: ViTSizes) -> None:
        super().__init__()
        self.project = nn.Linear(width_in, sizes.width)
        self.blocks = sizes.blocks()
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(
        self,
        encoded: Tensor,
        positions: Tensor,
        fill: Tensor,
        visible: TokenSubset | None,
        is_filled: Tensor | None = None,
    ) -> Tensor:
        """Encoder output (B, P + K, D) -> (B, P + L, D').

        Args:
            encoded: prefix and visible tokens.
            positions: (P + L, D'), added to all.
            fill: broadcast to (B, L, D'), for positions that were not encoded.
            visible: the encoded positions; None for all.
            is_filled: (B, L) bool, encoded positions that take the fill too ([MASK]s that MAGE keeps).
        """
        x = self.project(encoded)
        if visible is not None:
            n_prefix = len(positions) - visible.length
            tokens = visible.scatter(x[:, n_prefix:], fill.to(x.dtype))
            x = torch.cat([x[:, :n_prefix], tokens], 1)
        if is_filled is not None:
            n_prefix = len(positions) - is_filled.shape[1]
            tokens = torch.where(is_filled[..., None], fill.to(x.dtype), x[:, n_prefix:])
            x = torch.cat([x[:, :n_prefix], tokens], 1)
        x = x + positions
        for block in self.blocks:
            x = block(x)
        decoded: Tensor = self.norm(x)
        return decoded
