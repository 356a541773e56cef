"""What a checkpoint gives to a target: features or ids of the patches of an image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from maskgen.core.traits import network_of
from maskgen.objectives.targets.copies import featured, frozen_copy
from maskgen.tokenizers import ImageTokenizer


class Source(nn.Module, ABC):
    """Images (B, C, H, W) in [0, 1] -> what is predicted of each patch; its weights are buffers.

    Attributes:
        grid: (h, w) of the patches.
        width: numbers or classes to predict per patch.
        has_ids: whether it gives ids (B, L) int64, not features (B, L, W).
    """

    grid: tuple[int, int]
    width: int
    has_ids: bool

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...


class FrozenNetwork(Source):
    """Features of a generator's network, for MaskDistill and dBOT."""

    has_ids = False

    def __init__(self, network: nn.Module, tokenizer: ImageTokenizer, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.tokenizer = frozen_copy(network_of(network)), frozen_copy(tokenizer)
        self.grid = tokenizer.grid
        with torch.no_grad():
            self.width = self(torch.zeros(1, *image_shape)).shape[-1]

    def forward(self, images: Tensor) -> Tensor:
        return featured(self.network).features(self.tokenizer.encode(images))


class FrozenTokenizer(Source):
    """Token ids of a trained image tokenizer, for BEiT and PeCo."""

    has_ids = True

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = frozen_copy(tokenizer)
        self.grid, self.width = tokenizer.grid, tokenizer.vocab_size

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)
