"""Rotary positions (RoPE, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RotaryStyle = Literal["interleaved", "half"]


def rotation_1d(positions: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """(..., dim / 2) complex64: rotary angles of text positions (...).

    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"rotary positions need an even head width, got {dim}")
    frequencies = base ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions[..., None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotation_2d(grid: tuple[int, int], dim: int, base: float = 100.0, extent: tuple[int, int] | None = None) -> Tensor:
    """(h w, dim / 2) complex64: rotary angles of a grid, of rows in the first half, of columns in the second.

    With `extent`, the positions of a grid of that size are spread over this one (positional interpolation).

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


def rotation_released(length: int, dim: int, n_prefix: int = 1, base: float = 10_000.0) -> Tensor:
    """(n_prefix + L, dim / 2) complex64: the angles of MaskGIL's released code, for a prefix in front of the tokens.

    There the class token stands behind the tokens, and its table has one row more than positions, of zeros: token 0 is
    multiplied by zero, token i has position i - 1, and what stands behind has L - 1.
    """
    places = torch.cat([torch.full((n_prefix,), length - 1), torch.zeros(1).long(), torch.arange(length - 1)])
    turns = rotation_1d(places, dim, base)
    turns[n_prefix] = 0
    return turns


def rotate(x: Tensor, rotation: Tensor, style: RotaryStyle = "interleaved") -> Tensor:
    """Rotate pairs of channels: x (B, H, L, d), rotation (L, r/2) or (B, L, r/2) complex -> (B, H, L, d).

    Pair i is channels (2 i, 2 i + 1) in the style `interleaved` (RoFormer, GPT-J), and (i, i + r/2) in `half`
    (GPT-NeoX, Llama in transformers). With r < d only the first r channels are rotated (partial rotary).
    """
    rotation = rotation if rotation.ndim == 2 else rotation[:, None]
    n = 2 * rotation.shape[-1]
    if n < x.shape[-1]:
        return torch.cat([_rotate(x[..., :n], rotation, style), x[..., n:]], -1)
    return _rotate(x, rotation, style)


def _rotate(x: Tensor, rotation: Tensor, style: RotaryStyle) -> Tensor:
    if style == "interleaved":
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
    turned = torch.complex(*x.float().chunk(2, -1)) * rotation
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)
