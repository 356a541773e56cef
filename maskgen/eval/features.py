"""Images -> features and class logits: what every image score is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class FeatureNet(Protocol):
    """A network with `features` (B, D) of images (B, C, H, W) in [0, 1] and a `head` from those to (B, n_classes)."""

    def features(self, images: Tensor, /) -> Tensor: ...
    @property
    def head(self) -> Any: ...
    def eval(self) -> Any: ...
    def to(self, device: torch.device, /) -> Any: ...


@dataclass(frozen=True)
class FeatureExtractor:
    """A named network that images are scored with; `module` is moved to `device` and put in evaluation mode.

    At most `batch_size` images go through at once; what an image gets does not depend on it.
    """

    name: str
    module: FeatureNet
    device: torch.device
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        self.module.to(self.device)
        self.module.eval()

    @property
    def score_name(self) -> str:
        """What a distance of these features is called. Never "FID", which means Inception features of one protocol."""
        return f"frechet_distance[{self.name}]"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, C, H, W) -> features (B, D) and logits (B, n_classes), float on the CPU.

        Raises:
            ValueError: images that are not uint8, of another shape, or none.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"expected uint8 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}; see to_uint8"
            )
        features, logits = [], []
        for chunk in torch.split(images, self.batch_size):
            features.append(self.module.features(to_float(chunk.to(self.device))))
            logits.append(self.module.head(features[-1]))
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()


def to_uint8(images: Tensor) -> Tensor:
    """Images float in [0, 1] -> uint8, rounded to the nearest and clipped; any shape.

    Raises:
        ValueError: images that are not floating point, or hold NaN.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floating point images in [0, 1], got {images.dtype}")
    if bool(images.isnan().any()):
        raise ValueError("images hold NaN; as bytes they would pass for black")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Images uint8 -> float32 in [0, 1]; any shape. `to_uint8` undoes it exactly."""
    return images.float() / 255
