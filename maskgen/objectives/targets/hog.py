"""Histograms of oriented gradients as targets: MaskFeat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.streams import TokenLayout
from maskgen.objectives.targets.base import (
    TARGETS,
    NumberTarget,
    TargetSpec,
    TokenTarget,
    grid_of,
    images_of,
    patch_size,
)


def oriented_gradients(images: Tensor, cell: int, bins: int) -> Tensor:
    """Histograms of unsigned gradient directions, (B, C, H, W) -> (B, C, bins, H / cell, W / cell), of norm 1 or 0.

    Gradients are central differences over mirrored borders; a pixel votes for the bin of its direction in [0, pi) with
    its gradient's length; each cell's histogram is divided by its Euclidean norm (MaskFeat, arXiv 2112.09133, section
    3.2: without this normalisation the target is far worse).
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    direction = torch.atan2(along_y, along_x) / math.pi * bins
    chosen = F.one_hot(direction.floor().long().remainder(bins), bins).movedim(-1, 2)
    votes = chosen * along_x.hypot(along_y)[:, :, None]
    histograms = F.avg_pool2d(votes.flatten(0, 1), cell).unflatten(0, images.shape[:2])
    return F.normalize(histograms, dim=2)


class _Gradients(NumberTarget):
    def __init__(self, layout: TokenLayout | int, cell: int, bins: int) -> None:
        super().__init__()
        self.grid, self.bins = grid_of(layout), bins
        if isinstance(layout, int):
            return
        channels, side = patch_size(layout.width)
        self.cell = cell or max(side // 2, 1)
        if side % self.cell:
            raise ValueError(f"cell must divide the side {side} of a patch, got {self.cell}")
        self.width = channels * bins * (side // self.cell) ** 2

    def forward(self, x_0: Tensor) -> Tensor:
        found = oriented_gradients(images_of(x_0.float(), self.grid), self.cell, self.bins)
        h, w = self.grid
        cells = found.unflatten(4, (w, -1)).unflatten(3, (h, -1))  # (B, C, bins, h, n, w, n)
        histograms: Tensor = cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)
        return histograms


@TARGETS.register("hog")
@dataclass(frozen=True)
class Hog(TargetSpec):
    """Histograms of oriented gradients of each patch, by squared error: MaskFeat (arXiv 2112.09133).

    Args:
        bins: directions in [0, pi).
        cell: side of the cells in pixels, a divisor of the patch's; 0 for half a patch, the paper's 8 of 16.
    """

    bins: int = 9
    cell: int = 0
    needs_pixels = True

    def __post_init__(self) -> None:
        if self.bins < 2 or self.cell < 0:
            raise ValueError(f"bins must be at least 2 and cell not negative, got {self.bins} and {self.cell}")

    def build(self, layout: TokenLayout | int) -> TokenTarget:
        return _Gradients(layout, self.cell, self.bins)
