"""Interfaces of tokenizers, and their registry."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.registry import Registry
from maskgen.core.streams import Stream, StreamKind, TokenLayout


@dataclass(frozen=True)
class Reconstructed:
    """`images` (B, C, H, W); `penalty`, what the quantiser adds to the loss; `tokens` (B, L)."""

    images: Tensor
    penalty: Tensor
    tokens: Tensor


class Tokenizer(ABC):
    """Interface of image and text tokenizers: discrete tokens 0 ... vocab_size - 1, or continuous where that is 0."""

    vocab_size: int

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the mapping from data to tokens: the key of token caches."""


class ImageTokenizer(nn.Module, Tokenizer):
    """Images (B, C, H, W) in [0, 1] <-> tokens, rows first: (B, L) int64 in 0..vocab_size - 1, or (B, L, D) float.

    A final class sets `grid` (h, w), L = h w, and `vocab_size`; for continuous tokens `has_discrete_tokens` is False,
    `vocab_size` 0 and `token_width` D.
    With `has_pixels` a continuous token is a patch of pixels in [-1, 1], as `patchify` makes them.
    A continuous token has `patch_area` numbers per channel, channels first.
    """

    kind: ClassVar[StreamKind] = "image"
    has_discrete_tokens: ClassVar[bool] = True
    has_pixels: ClassVar[bool] = False
    vocab_size: int
    token_width: int = 0
    patch_area: int = 1
    grid: tuple[int, int]

    @property
    def layout(self) -> TokenLayout:
        """The rows of tokens as one stream."""
        return TokenLayout.of(Stream("image", "image", self.vocab_size, self.grid, self.token_width))

    def sizes(self) -> dict[str, object]:
        """Sizes that a network of these tokens is built with."""
        return {"vocab_size": self.vocab_size, "token_width": self.token_width, "grid": self.grid}

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] -> (B, L) int64, or (B, L, D) float."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """(B, L) int64, or (B, L, D) float -> (B, C, H, W) float in [0, 1]."""

    def known(self, images: Tensor, masked: Tensor) -> Tensor:
        """Known tokens of images of which a part is to be generated: -1, or NaN, where a token is masked.

        Images (B, C, H, W) in [0, 1], masked (B, 1, H, W) bool; a token is masked if any of its pixels is.
        """
        tokens = self.encode(images.masked_fill(masked, 0.5))  # known neighbours must not depend on masked pixels
        is_masked = F.adaptive_max_pool2d(masked.float(), self.grid).flatten(1).bool()  # (B, L)
        if not self.has_discrete_tokens:
            return tokens.masked_fill(is_masked[..., None], torch.nan)
        return tokens.masked_fill(is_masked, -1)

    def forward(self, images: Tensor) -> Reconstructed:
        """A training pass; only trainable tokenizers have one."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def has_parameters(self) -> bool:
        return any(True for _ in self.parameters())

    def fingerprint(self) -> str:
        """SHA-256 of type, sizes and weights."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.vocab_size} {self.grid} {self.extra_repr()}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


TOKENIZERS: Registry[Tokenizer] = Registry(
    "tokenizer", derived=("image_shape", "corpus", "held_out"), home="maskgen.tokenizers:TOKENIZERS"
)
"""Image tokenizers are classes; an entry for text is a function that makes a `TextTokenizer`."""


def kind_of(name: str) -> StreamKind:
    """The kind of data that a registered tokenizer is for; a function makes a text tokenizer."""
    entry = TOKENIZERS.get(name)
    return entry.kind if _is_image_tokenizer(entry) else "text"


def is_discrete(name: str) -> bool:
    """Whether a registered tokenizer makes ids of a vocabulary."""
    entry = TOKENIZERS.get(name)
    return entry.has_discrete_tokens if _is_image_tokenizer(entry) else True


def has_pixels(name: str) -> bool:
    """Whether a registered tokenizer's tokens are patches of pixels."""
    entry = TOKENIZERS.get(name)
    return _is_image_tokenizer(entry) and entry.has_pixels


def _is_image_tokenizer(entry: object) -> TypeGuard[type[ImageTokenizer]]:
    return isinstance(entry, type) and issubclass(entry, ImageTokenizer)
