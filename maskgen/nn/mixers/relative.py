"""Relative position bias: a learned term of the attention score, by the offset of two tokens on the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_CLASS = 3
"""Rows of BEiT's tables for a class token; networks without one keep them, so that public weights fit."""


def relative_index(grid: tuple[int, int], keep: Tensor | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Row of the bias table for every pair of tokens: (1, L, L), or (B, K, K) of kept tokens, keep (B, K) int64.

    An offset of dr rows and dc columns has row (dr + h - 1) (2 w - 1) + dc + w - 1 (BEiT, arXiv 2106.08254).
    """
    height, width = grid
    rows = torch.arange(height, device=device)[:, None] * (2 * width - 1)
    place = (rows + torch.arange(width, device=device)).flatten()  # (L,)
    place = place[None] if keep is None else place[keep]
    index: Tensor = place[:, :, None] - place[:, None] + (height - 1) * (2 * width - 1) + width - 1
    return index


class RelativeBias(nn.Embedding):
    """Indices of token pairs, `relative_index` (B, n, n) -> bias (B, H, n, n), one value per head."""

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__((2 * grid[0] - 1) * (2 * grid[1] - 1) + N_CLASS, heads)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, index: Tensor) -> Tensor:
        # By heads first: selecting along contiguous rows, forwards and back, is several times faster than indexing.
        bias = self.weight.t().contiguous().index_select(1, index.flatten())  # (H, B n n)
        spread: Tensor = bias.unflatten(1, index.shape)
        return spread.transpose(0, 1)


class SharedBias(RelativeBias):
    """The bias of a class token and a grid of tokens, one table for all blocks of a network (SimMIM; BEiT)."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__(grid, heads)
        self.register_buffer("index", class_index(grid), persistent=False)

    def forward(self) -> Tensor:  # type: ignore[override]
        """(1, H, 1 + L, 1 + L)."""
        return super().forward(self.index)


def class_index(grid: tuple[int, int]) -> Tensor:
    """`relative_index` (1, 1 + L, 1 + L) with a class token in front.

    Its rows are the last three of the table: from it to tokens, from tokens to it, and its own.
    """
    n_rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + N_CLASS
    index = F.pad(relative_index(grid), (1, 0, 1, 0), value=n_rows - 3)
    index[:, 1:, 0] = n_rows - 2
    index[:, 0, 0] = n_rows - 1
    return index
