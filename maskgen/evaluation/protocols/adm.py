"""ADM's Inception without TensorFlow: all features of its table from one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.evaluation.protocols.features import Features

SIDE = 299
SPATIAL_CHANNELS = 7
"""sFID (Nash et al., arXiv 2103.03841) takes the first 7 of 192 channels of an inner layer: 17 x 17 x 7 numbers."""


class AdmInception(nn.Module):
    """The 2015 Inception with the three outputs of ADM's evaluator.

    Args:
        inception: torchvision's Inception with the blocks of FID, 1008 classes.
    """

    def __init__(self, inception: Any) -> None:
        super().__init__()
        self.inception = inception
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Features:
        """Images (B, 3, H, W) uint8 -> pool (B, 2048), spatial (B, 2023), logits (B, 1008) without the bias."""
        net = self.inception
        x = images.to(next(self.parameters()).device).float()
        x = (tf1_bilinear(x, SIDE) - 128) / 128
        for block in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3):
            x = block(x)
        x = F.max_pool2d(x, 3, 2)
        for block in (net.Conv2d_3b_1x1, net.Conv2d_4a_3x3):
            x = block(x)
        x = F.max_pool2d(x, 3, 2)
        for block in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c):
            x = block(x)
        spatial = net.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]  # mixed_6/conv of the graph
        for block in (net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c):
            x = block(x)
        pool = x.mean((2, 3))
        logits = pool @ net.fc.weight.mT
        return Features(pool, logits, spatial.permute(0, 2, 3, 1).flatten(1))  # channels last, as TensorFlow


def tf1_bilinear(x: Tensor, side: int) -> Tensor:
    """Bilinear resizing of TensorFlow 1: pixel i lies at i (H / side), no half pixels, no antialiasing.

    (B, C, H, W) float -> (B, C, side, side).
    """
    rows, columns = (_taps(n, side, x) for n in x.shape[2:])
    upper, lower = x[:, :, rows[0]], x[:, :, rows[1]]
    x = upper + (lower - upper) * rows[2][:, None]
    left, right = x[..., columns[0]], x[..., columns[1]]
    return left + (right - left) * columns[2]


def _taps(n: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two neighbours of each of `side` places, and the share of the second."""
    place = torch.arange(side, device=like.device, dtype=like.dtype) * (n / side)
    first = place.floor()
    low = first.long().clamp(max=n - 1)
    return low, (low + 1).clamp(max=n - 1), place - first
