"""Encoders that see visible tokens only, and decoders over all: what MAE, MAGE, MAR and DiffMAE share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.nn.attention import AttentionBackend
from maskgen.nn.blocks import PreNormBlock


@dataclass(frozen=True)
class ViTSizes:
    """Of a stack of pre-norm ViT blocks (arXiv 2010.11929)."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    backend: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or not self.mlp_ratio > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "width, depth, heads and mlp_ratio must be positive and dropout in [0, 1), got "
                f"{self.width}, {self.depth}, {self.heads}, {self.mlp_ratio} and {self.dropout}"
            )
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and heads {self.heads}")

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> ViTSizes:
        """Of a network's keys.

        Raises:
            ValueError: sizes that are not possible.
        """
        return cls(*(keys[name] for name in ("width", "depth", "heads", "mlp_ratio", "dropout")))

    def blocks(self) -> nn.ModuleList:
        sizes = (self.width, self.heads, self.mlp_ratio, self.dropout, self.backend)
        return nn.ModuleList(PreNormBlock(*sizes) for _ in range(self.depth))


class _Encoder(nn.Module):
    """Blocks over a prefix (class slot, buffers) and the visible tokens only (MAE, arXiv 2111.06377)."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.blocks = sizes.blocks()
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def layers(self, x: Tensor, visible: TokenSubset | None) -> list[Tensor]:
        """x (B, P + L, D), positions added -> (B, P + K, D) after each block, only the last one normalised.

        All L tokens are visible where `visible` is None. Rows with fewer visible tokens than K are padded; what pads is
        seen by none, and its answers mean nothing.
        """
        mask = None
        if visible is not None:
            n_prefix = x.shape[1] - visible.length
            x = torch.cat([x[:, :n_prefix], visible.gather(x[:, n_prefix:])], 1)
            mask = key_mask(visible, n_prefix)
        found = []
        for block in self.blocks:
            x = block(x, mask=mask)
            found.append(x)
        return [*found[:-1], self.norm(x)]

    def attention_scores(self, x: Tensor, n_prefix: int = 1) -> Tensor:
        """(B, L), how much attention the prefix gives to each token in the last block; x (B, P + L, D), all visible."""
        for block in self.blocks[:-1]:
            x = block(x)
        weights: Tensor = cast(PreNormBlock, self.blocks[-1]).weights(x)
        return weights[:, :n_prefix, n_prefix:].mean(1)


class VisibleEncoder(_Encoder):
    """Blocks over a prefix and the visible tokens only; what the last one says."""

    def forward(self, x: Tensor, visible: TokenSubset | None) -> Tensor:
        """x (B, P + L, D), positions added -> (B, P + K, D), see `layers`."""
        return self.layers(x, visible)[-1]


class LayeredEncoder(_Encoder):
    """Blocks over a prefix and the visible tokens only; what each of them says, for decoders that read them all."""

    def forward(self, x: Tensor, visible: TokenSubset | None) -> list[Tensor]:
        """x (B, P + L, D), positions added -> (B, P + K, D) of each block, see `layers`."""
        return self.layers(x, visible)


class JointDecoder(nn.Module):
    """Visible tokens back in their places, a fill in the others, then blocks over all (MAE, MAGE, MAR).

    Args:
        width_in: of the encoder.
        sizes: of the decoder.
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
        """(B, P + K, D) as the encoder leaves it -> (B, P + L, D').

        Args:
            encoded: prefix and visible tokens.
            positions: (P + L, D'), added to all.
            fill: broadcast to (B, L, D'), what stands where nothing was seen.
            visible: the encoder's; None where it saw all.
            is_filled: (B, L) bool, places that are filled though the encoder saw them ([MASK]s that MAGE keeps).
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


def key_mask(visible: TokenSubset, n_prefix: int) -> Tensor | None:
    """(B, 1, 1, P + K) bool for `attend`: the prefix and the tokens that are meant; None where all are."""
    if visible.valid is None:
        return None
    prefix = visible.valid.new_ones(len(visible.valid), n_prefix)
    return torch.cat([prefix, visible.valid], 1)[:, None, None]
