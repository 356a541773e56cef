"""Squares of tokens that a network treats as one position."""

from __future__ import annotations

from torch import Tensor, nn


class TokenPatches(nn.Module):
    """Square of p x p embedded tokens <-> one vector of the same width, by linear layers (Halton-MaskGIT).

    Args:
        width: D.
        patch: p.
        grid: (h, w) of the tokens.

    Raises:
        ValueError: the grid is no multiple of p.
    """

    def __init__(self, width: int, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if patch < 1 or grid[0] % patch or grid[1] % patch:
            raise ValueError(f"patch must be at least 1 and divide the grid {grid[0]} x {grid[1]}, got {patch}")
        self.patch, self.grid = patch, grid
        self.joined = nn.Conv2d(width, width, patch, patch, bias=False)
        self.parted = nn.Linear(width, width * patch * patch, bias=False)
        for layer in (self.joined, self.parted):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)

    def join(self, x: Tensor) -> Tensor:
        """(B, h w, D) -> (B, h w / p^2, D)."""
        x = x.mT.unflatten(-1, self.grid)
        joined: Tensor = self.joined(x).flatten(2).mT
        return joined

    def split(self, x: Tensor) -> Tensor:
        """(B, h w / p^2, D) -> (B, h w, D)."""
        p, (height, width) = self.patch, self.grid
        x = self.parted(x).view(len(x), height // p, width // p, -1, p, p)  # (B, h/p, w/p, D, p, p)
        return x.permute(0, 1, 4, 2, 5, 3).flatten(1, 4)
