"""Encoders of visible tokens: MAE, MAGE, MAR and DiffMAE."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.nn.block import Block
from maskgen.nn.published_blocks import ViTSizes


class _Encoder(nn.Module):
    """ViT blocks over a prefix (class token, buffers) and the visible tokens only (MAE, arXiv 2111.06377)."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.blocks = sizes.blocks()
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def layers(self, x: Tensor, visible: TokenSubset | None) -> list[Tensor]:
        """x (B, P + L, D), positions added -> (B, P + K, D) after each block, the last one normalised.

        `visible` None means all L tokens. Rows with fewer than K visible tokens are padded; no token attends to the
        padding, and its outputs are undefined.
        """
        mask = None
        if visible is not None:
            n_prefix = x.shape[1] - visible.length
            x = torch.cat([x[:, :n_prefix], visible.gather(x[:, n_prefix:])], 1)
            mask = key_mask(visible, n_prefix)
        states = []
        for block in self.blocks:
            x = block(x, mask=mask)
            states.append(x)
        return [*states[:-1], self.norm(x)]

    def attention_scores(self, x: Tensor, n_prefix: int = 1) -> Tensor:
        """(B, L), attention from the prefix to each token in the last block; x (B, P + L, D), all visible."""
        for block in self.blocks[:-1]:
            x = block(x)
        block = self.blocks[-1]
        assert isinstance(block, Block)
        weights = block.weights(x)
        return weights[:, :n_prefix, n_prefix:].mean(1)


class VisibleEncoder(_Encoder):
    """Blocks over a prefix and the visible tokens; returns the last block's output."""

    def forward(self, x: Tensor, visible: TokenSubset | None) -> Tensor:
        """x (B, P + L, D), positions added -> (B, P + K, D), see `layers`."""
        return self.layers(x, visible)[-1]


class LayeredEncoder(_Encoder):
    """Blocks over a prefix and the visible tokens; returns every block's output, for decoders that use them all."""

    def forward(self, x: Tensor, visible: TokenSubset | None) -> list[Tensor]:
        """x (B, P + L, D), positions added -> (B, P + K, D) of each block, see `layers`."""
        return self.layers(x, visible)


def key_mask(visible: TokenSubset, n_prefix: int) -> Tensor | None:
    """(B, 1, 1, P + K) bool for `attend`: True for the prefix and tokens that do not pad; None without padding."""
    if visible.valid is None:
        return None
    prefix = visible.valid.new_ones(len(visible.valid), n_prefix)
    return torch.cat([prefix, visible.valid], 1)[:, None, None]
