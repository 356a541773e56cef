"""Encoders of visible tokens: MAE, MAGE, MAR and DiffMAE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.nn.block import Block
from maskgen.nn.published_blocks import ViTSizes


@dataclass(frozen=True)
class EncoderStates:
    """What an encoder computed, for decoders that use more than its output; each (B, P + K, D).

    Attributes:
        maps: its input, and the output of every block.
        output: the last of them, normalised.
    """

    maps: list[Tensor]
    output: Tensor

    @property
    def normalised(self) -> list[Tensor]:
        """The output of every block, the last one normalised."""
        return [*self.maps[1:-1], self.output]


class _Encoder(nn.Module):
    """ViT blocks over a prefix (class token, buffers) and the visible tokens only (MAE, arXiv 2111.06377).

    Args:
        sizes: of the blocks.
        is_norm_learned: whether the norm of the output has weights; it should not where nothing reads the output.
    """

    def __init__(self, sizes: ViTSizes, is_norm_learned: bool = True) -> None:
        super().__init__()
        self.blocks = sizes.blocks()
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6, elementwise_affine=is_norm_learned)

    def states(self, x: Tensor, visible: TokenSubset | None, bias: Tensor | None = None) -> EncoderStates:
        """x (B, P + L, D), positions added -> states of the prefix and the K visible tokens.

        `visible` None means all L tokens. Rows with fewer than K visible tokens are padded; no token attends to the
        padding, and its outputs are undefined. `bias` (1, H, P + L, P + L) of the attention scores is for all tokens.
        """
        mask = bias
        if visible is not None:
            n_prefix = x.shape[1] - visible.length
            x = torch.cat([x[:, :n_prefix], visible.gather(x[:, n_prefix:])], 1)
            mask = key_mask(visible, n_prefix)
        maps = [x]
        for block in self.blocks:
            maps.append(block(maps[-1], mask=mask))
        return EncoderStates(maps, self.norm(maps[-1]))

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
        """x (B, P + L, D), positions added -> (B, P + K, D), see `states`."""
        return self.states(x, visible).output


class LayeredEncoder(_Encoder):
    """Blocks over a prefix and the visible tokens; returns every block's output, for decoders that use them all."""

    def forward(self, x: Tensor, visible: TokenSubset | None, bias: Tensor | None = None) -> EncoderStates:
        """x (B, P + L, D), positions added -> states, see `states`."""
        return self.states(x, visible, bias)


def key_mask(visible: TokenSubset, n_prefix: int) -> Tensor | None:
    """(B, 1, 1, P + K) bool for `attend`: True for the prefix and tokens that do not pad; None without padding."""
    if visible.valid is None:
        return None
    prefix = visible.valid.new_ones(len(visible.valid), n_prefix)
    return torch.cat([prefix, visible.valid], 1)[:, None, None]
