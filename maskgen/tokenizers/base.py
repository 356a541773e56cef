"""What every image tokenizer offers, and the registry of all tokenizers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.registry import Registry
from maskgen.core.streams import Stream, TokenLayout


@dataclass(frozen=True)
class Reconstructed:
    """`images` (B, C, H, W); `penalty`, what the quantiser adds to the loss; `tokens` (B, L)."""

    images: Tensor
    penalty: Tensor
    tokens: Tensor


class Tokenizer(ABC):
    """What image and text tokenizers share: tokens are ids in 0 ... vocab_size - 1, or vectors where that is 0."""

    vocab_size: int

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the tokens of the same data would: the key of token caches."""


class ImageTokenizer(nn.Module, Tokenizer):
    """Images (B, C, H, W) in [0, 1] <-> tokens, rows first: (B, L) int64 in 0..vocab_size - 1, or (B, L, D) float.

    A final class sets `vocab_size`, or `token_width` D and a `vocab_size` of 0, and `grid` (h, w), L = h w.
    """

    vocab_size: int
    token_width: int = 0
    grid: tuple[int, int]

    @property
    def is_continuous(self) -> bool:
        """Whether tokens are vectors, not numbers of a vocabulary."""
        return self.vocab_size == 0

    @property
    def layout(self) -> TokenLayout:
        """The rows of tokens as one stream."""
        return TokenLayout.of(Stream("image", "image", self.vocab_size, self.grid, self.token_width))

    def sizes(self) -> dict[str, Any]:
        """What a network of these tokens is built with."""
        return {"vocab_size": self.vocab_size, "token_width": self.token_width, "grid": self.grid}

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] -> (B, L) int64, or (B, L, D) float."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """(B, L) int64, or (B, L, D) float -> (B, C, H, W) float in [0, 1]."""

    def known(self, images: Tensor, wanted: Tensor) -> Tensor:
        """What is given of images of which a part is wanted, as samplers take it: -1, or NaN, where it is wanted.

        Images (B, C, H, W) in [0, 1], wanted (B, 1, H, W) bool; a token is wanted if any of its pixels is.
        """
        tokens = self.encode(images.masked_fill(wanted, 0.5))  # what is wanted must not be read off its neighbours
        is_wanted = F.adaptive_max_pool2d(wanted.float(), self.grid).flatten(1).bool()  # (B, L)
        if self.is_continuous:
            return tokens.masked_fill(is_wanted[..., None], torch.nan)
        return tokens.masked_fill(is_wanted, -1)

    def forward(self, images: Tensor) -> Reconstructed:
        """A training pass; only tokenizers that learn have one."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def has_parameters(self) -> bool:
        return any(True for _ in self.parameters())

    def fingerprint(self) -> str:
        """Hash of type, sizes and weights: what a token cache is keyed with."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.vocab_size} {self.grid} {self.extra_repr()}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


TOKENIZERS: Registry[Tokenizer] = Registry(
    "tokenizer", derived=("image_shape", "corpus"), home="maskgen.tokenizers:TOKENIZERS"
)
"""Image tokenizers are classes; an entry for text is a function that makes a `TextTokenizer`."""
