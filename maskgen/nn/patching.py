"""Squares of tokens that a network treats as one position."""

from __future__ import annotations

from torch import Tensor, nn


class TokenPatches(nn.Module):
    """Squares of p x p embedded tokens <-> vectors, by linear layers (Halton-MaskGIT, discrete U-ViT).

    Args:
        width: D of tokens and of patches.
        patch: p.
        grid: (h, w) of the tokens.
        width_out: D' of the tokens of a split patch; None for D.
        has_bias: of both layers.

    Raises:
        ValueError: the grid is no multiple of p.
    """

    def __init__(
        self, width: int, patch: int, grid: tuple[int, int], width_out: int | None = None, has_bias: bool = False
    ) -> None:
        super().__init__()
        if patch < 1 or grid[0] % patch or grid[1] % patch:
            raise ValueError(f"patch must be at least 1 and divide the grid {grid[0]} x {grid[1]}, got {patch}")
        self.patch, self.grid = patch, grid
        self.joined = nn.Conv2d(width, width, patch, patch, bias=has_bias)
        self.parted = nn.Linear(width, (width_out or width) * patch * patch, bias=has_bias)
        nn.init.trunc_normal_(self.joined.weight, std=0.02, a=-0.04, b=0.04)

    @property
    def n_patches(self) -> int:
        """Patches in the grid."""
        return self.grid[0] * self.grid[1] // self.patch**2

    def join(self, x: Tensor) -> Tensor:
        """(B, h w, D) -> (B, h w / p^2, D)."""
        joined: Tensor = self.joined(x.mT.unflatten(-1, self.grid)).flatten(2).mT
        return joined

    def split(self, x: Tensor) -> Tensor:
        """(B, h w / p^2, D) -> (B, h w, D'); channel c of token (i, j) is output (c p + i) p + j of its patch."""
        p, (height, width) = self.patch, self.grid
        x = self.parted(x).view(len(x), height // p, width // p, -1, p, p)
        return x.permute(0, 1, 4, 2, 5, 3).flatten(1, 4)


def require_patch(registers: int, patch: int, positions: str) -> None:
    """Check registers and the patch, whose tokens are joined after positions are added.

    Raises:
        ValueError: they are not possible.
    """
    if registers < 0 or (patch > 1 and positions != "learned"):
        raise ValueError(f"registers must be at least 0 and patch needs positions learned, got {registers}, {patch}")
