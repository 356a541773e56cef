"""A small convolutional classifier: class accuracy of samples, and features of their Fréchet distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import Tables

MIN_SIDE = 8


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int) -> None:
        padding = (kernel - 1) // 2
        super().__init__(nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(n_out))


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, ReLU after the sum (ResNet, arXiv 1512.03385); (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, 3, 1)
        self.second = ConvNorm(width, width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


@MODELS.register("classifier")
class ImageClassifier(nn.Module):
    """Residual ConvNet of two stages, each at half the side of the one before, pooled to `width` features.

    Args:
        image_shape: (C, H, W) of the images, sides of at least 8.
        n_classes: number of logits.
        width: features of the last stage, even; the first stage has half as many.
        n_blocks: residual blocks a stage.

    Raises:
        ValueError: a size that cannot be built.
    """

    traits = NetworkTraits(
        objectives=("classification",),
        tokens=(),
        streams=("image",),
        conditions=(),
        has_features=True,
    )

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, width: int = 64, n_blocks: int = 1) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        if min(height, image_width) < MIN_SIDE:
            raise ValueError(
                f"the classifier needs images of at least {MIN_SIDE}x{MIN_SIDE}, got {height}x{image_width}"
            )
        if width < 2 or width % 2:
            raise ValueError(f"width must be an even number of at least 2, got {width}")
        if n_classes < 1 or n_blocks < 0:
            raise ValueError(f"n_classes must be >= 1 and n_blocks >= 0, got {n_classes} and {n_blocks}")
        self.n_classes = n_classes
        self.n_features = width
        stages: list[nn.Module] = []
        for n_in, n_out in ((channels, width // 2), (width // 2, width)):
            stages += [ConvNorm(n_in, n_out, 4, 2), nn.ReLU(), *(ResidualBlock(n_out) for _ in range(n_blocks))]
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(width, n_classes)

    def tables(self) -> Tables:
        """Rows of the head."""
        return {"head.weight": ("class",), "head.bias": ("class",)}

    def features(self, images: Tensor) -> Tensor:
        """Pooled activations before the head: images (B, C, H, W) in [0, 1] -> (B, width), none negative."""
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.body(x)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes: images (B, C, H, W) float in [0, 1] -> (B, n_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
