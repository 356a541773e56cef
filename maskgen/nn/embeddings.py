"""Positions, times and labels as vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotation_2d(grid: tuple[int, int], dim: int, base: float = 100.0, extent: tuple[int, int] | None = None) -> Tensor:
    """(h w, dim / 2) complex64: rotary angles of a grid, rows in the first half, columns in the second.

    With `extent`, the places of a grid of that size are spread over this one (positional interpolation).

    Raises:
        ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2-D rotary positions need a head width that is a multiple of 4, got {dim}")
    frequencies = base ** (-torch.arange(0, dim // 4) / (dim // 4))
    places = [torch.arange(n) * (wide / n) for n, wide in zip(grid, extent or grid, strict=True)]
    rows, columns = torch.meshgrid(*places, indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in (rows, columns)], 1)
    return torch.polar(torch.ones_like(angles), angles)


def sincos_2d(grid: tuple[int, int], width: int, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """(h w, D): sines and cosines of the column in the first half, of the row in the second (MAE, DiT).

    `spacing` of rows and columns: 0.5 on a grid of twice the side puts every second token where it was.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    require_sincos(width)
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = [torch.arange(n, dtype=torch.float64) * by for n, by in zip(grid, spacing, strict=True)]
    rows, columns = torch.meshgrid(*places, indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1).float()


def require_sincos(width: int) -> None:
    """See that there are `sincos_2d` of a width.

    Raises:
        ValueError: it is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4, got {width}")


def sincos_over(base_grid: tuple[int, int], grid: tuple[int, int], width: int) -> Tensor:
    """(h w, D): `sincos_2d` of the tokens of `grid`, spread over the picture that `base_grid` covers."""
    return sincos_2d(grid, width, (base_grid[0] / grid[0], base_grid[1] / grid[1]))


def rotation_1d(positions: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """(..., dim / 2) complex64: rotary angles of the places `positions` (...) in a text (arXiv 2104.09864).

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"rotary positions need an even head width, got {dim}")
    frequencies = base ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions[..., None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864): x (B, H, L, d), rotation (L, d/2) or (B, L, d/2) complex."""
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    rotation = rotation if rotation.ndim == 2 else rotation[:, None]
    return torch.view_as_real(turned * rotation).flatten(-2).to(x.dtype)


class LabelEmbedding(nn.Embedding):
    """Class labels (B,) -> (B, D), with one row more for "no class" (a negative label)."""

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__(n_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return super().forward(torch.where(labels < 0, self.num_embeddings - 1, labels))


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, D): cosines and sines of scale * t, then Linear - SiLU - Linear (DiT, arXiv 2212.09748).

    The default scale is for t in [0, 1]; networks of a Gaussian process are told its c_noise and take 1. MicroDiT has a
    GELU for SiLU, its tanh form: `gelu`.
    """

    def __init__(self, width: int, n_frequencies: int = 256, scale: float = 1000.0, gelu: bool = False) -> None:
        super().__init__()
        self.n_frequencies = n_frequencies
        self.scale = scale
        activation = nn.GELU("tanh") if gelu else nn.SiLU()
        self.mlp = nn.Sequential(nn.Linear(n_frequencies, width), activation, nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.n_frequencies // 2
        frequencies = 10_000.0 ** (-torch.arange(half, device=t.device) / half)
        angles = self.scale * t.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        embedded: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedded
