"""Patches of pixels as continuous tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer


@TOKENIZERS.register("patches")
class PatchTokenizer(ImageTokenizer):
    """The image itself: a token (D = C size^2, channels first) is a patch of pixels, in [-1, 1].

    Args:
        image_shape: (C, H, W).
        size: side of a patch.
    """

    has_discrete_tokens, has_pixels = False, True
    vocab_size = 0

    def __init__(self, image_shape: tuple[int, int, int], size: int = 2) -> None:
        super().__init__()
        channels, height, width = image_shape
        if size < 1 or height % size or width % size:
            raise ValueError(f"size must divide both sides of the image, got {size} for {height} x {width} pixels")
        self.size, self.token_width, self.patch_area = size, channels * size**2, size**2
        self.grid = (height // size, width // size)

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def encode(self, images: Tensor) -> Tensor:
        return patchify(2 * images - 1, self.size)

    def decode(self, tokens: Tensor) -> Tensor:
        return ((unpatchify(tokens, self.grid, self.size) + 1) / 2).clamp(0, 1)

    def known(self, images: Tensor, masked: Tensor) -> Tensor:
        """As `ImageTokenizer.known`, but pixel by pixel: a patch may be known in part."""
        is_masked = patchify(masked.expand(images.shape), self.size)
        return self.encode(images).masked_fill(is_masked, torch.nan)


def patchify(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, L, C size^2): patches row by row, each channels first."""
    patches: Tensor = images.unfold(2, size, size).unfold(3, size, size)  # (B, C, h, w, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Undoes `patchify`: (B, h w, C size^2) -> (B, C, h size, w size)."""
    patches: Tensor = tokens.unflatten(1, grid).unflatten(3, (-1, size, size))  # (B, h, w, C, size, size)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
