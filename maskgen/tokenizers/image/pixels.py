"""Pixels as tokens."""

from __future__ import annotations

from torch import Tensor

from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer


@TOKENIZERS.register("pixels")
class PixelTokenizer(ImageTokenizer):
    """Grey levels: every pixel is a token, rounded to one of `levels` evenly spaced values.

    Args:
        image_shape: (1, H, W).
        levels: V, 2 to 256.
    """

    def __init__(self, image_shape: tuple[int, int, int], levels: int = 16) -> None:
        super().__init__()
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be 2 to 256, got {levels}")
        if image_shape[0] != 1:
            raise ValueError(f"the pixel tokenizer is for grey images (1 channel), got {image_shape[0]} channels")
        self.vocab_size = levels
        self.grid = image_shape[1:]

    def encode(self, images: Tensor) -> Tensor:
        return (images.clamp(0, 1) * (self.vocab_size - 1)).round().long().flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        return (tokens.float() / (self.vocab_size - 1)).view(-1, 1, *self.grid)
