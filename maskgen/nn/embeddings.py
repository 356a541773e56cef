"""Embeddings of positions, times and labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sincos_2d(grid: tuple[int, int], width: int, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """(h w, D): sines and cosines of the column index in the first half, of the row index in the second (MAE, DiT).

    `spacing` is the step between rows and between columns: at 0.5 a grid of twice the side covers the same positions.

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
    """Check that `sincos_2d` exists for a width.

    Raises:
        ValueError: it is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4, got {width}")


def sincos_over(
    base_grid: tuple[int, int], grid: tuple[int, int], width: int, spacing: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """(h w, D): `sincos_2d` of `grid`, scaled to cover the same image as `base_grid` with its `spacing`."""
    rows, columns = (by * base / n for by, base, n in zip(spacing, base_grid, grid, strict=True))
    return sincos_2d(grid, width, (rows, columns))


class LabelEmbedding(nn.Embedding):
    """Class labels (B,) -> (B, D), with one more row for "no class" (negative labels)."""

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__(n_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return super().forward(torch.where(labels < 0, self.num_embeddings - 1, labels))


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, D): cosines and sines of scale * t, then Linear - SiLU - Linear (DiT, arXiv 2212.09748).

    The default scale is for t in [0, 1]; networks of a Gaussian process are given its c_noise and take scale 1.

    Args:
        width: D.
        n_frequencies: cosines and sines together.
        scale: of t.
        gelu: the tanh GELU in place of SiLU (MicroDiT).
        hidden: width between the two layers; 0 is D.
        is_inclusive: the frequencies fall to exactly 1e-4 (MD4), else to one step before it.
    """

    def __init__(
        self,
        width: int,
        n_frequencies: int = 256,
        scale: float = 1000.0,
        gelu: bool = False,
        hidden: int = 0,
        is_inclusive: bool = False,
    ) -> None:
        super().__init__()
        self.n_frequencies, self.scale, self.is_inclusive = n_frequencies, scale, is_inclusive
        activation = nn.GELU("tanh") if gelu else nn.SiLU()
        hidden = hidden or width
        self.mlp = nn.Sequential(nn.Linear(n_frequencies, hidden), activation, nn.Linear(hidden, width))

    def forward(self, t: Tensor) -> Tensor:
        waves = time_waves(self.scale * t.float(), self.n_frequencies, self.is_inclusive)
        embedded: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedded


def time_waves(t: Tensor, n: int, is_inclusive: bool = False) -> Tensor:
    """t (B,) -> (B, n): cosines, then sines, of t at n / 2 frequencies from 1 to a step before 1e-4, or to 1e-4."""
    half = n // 2
    angles = t.float()[:, None] * 10_000.0 ** (-torch.arange(half, device=t.device) / (half - int(is_inclusive)))
    return torch.cat([angles.cos(), angles.sin()], 1)
