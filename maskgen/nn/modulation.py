"""Adaptive normalisation: shift, scale and gate from a condition (adaLN, arXiv 2212.09748)."""

from __future__ import annotations

import torch
from torch import Tensor


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift; x (B, L, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)
