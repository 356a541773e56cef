"""Images -> features, from which image scores are computed, and everything a score depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from torch import Tensor

from maskgen.core.errors import UserError


@dataclass(frozen=True)
class Features:
    """Outputs of a network, float on the CPU: `pool` (N, D); `logits` (N, K) and `spatial` (N, S) if any."""

    pool: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A network that computes features, under the name of a protocol.

    Attributes:
        protocol: `clean-fid`, `adm`, `fashion-classifier`, ...
        resize: how an image is brought to the network's size.
        weights: SHA-256 of the network's file.
        network: images (B, C, H, W) uint8 -> Features, on any device, without gradients.
        channels: C that it takes; images are brought to it.
        image_shape: the only shape it takes, if there is but one.
        mixes_sizes: whether every image is resized by itself, so that a set may have images of several sizes.
        n_classes: of its logits, where they are the classes of the data that the images are to resemble; else 0.
        batch_size: images at once; features do not depend on it.
        versions: of the packages that compute.
        notes: what a reader of its scores should know.
    """

    protocol: str
    resize: str
    weights: str
    network: Callable[[Tensor], Features]
    channels: int | None = 3
    image_shape: tuple[int, int, int] | None = None
    mixes_sizes: bool = False
    n_classes: int = 0
    batch_size: int = 64
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def identity(self) -> dict[str, str]:
        """What must be equal for two scores to compare."""
        return {"protocol": self.protocol, "resize": self.resize, "weights": self.weights}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Images uint8 (B, C, H, W) -> their features.

        Raises:
            ValueError: images that are not uint8, of another number of dimensions, or none.
            UserError: images of a shape that this network does not take.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"expected uint8 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}; see to_uint8"
            )
        images = images if self.channels is None else to_channels(images, self.channels)
        if self.image_shape not in (None, tuple(images.shape[1:])):
            raise UserError(f"{self.protocol} takes images {self.image_shape}, got {tuple(images.shape[1:])}")
        found = [self.network(part) for part in images.split(self.batch_size)]
        names = [name for name in ("pool", "logits", "spatial") if getattr(found[0], name) is not None]
        return Features(**{name: torch.cat([getattr(one, name).float().cpu() for one in found]) for name in names})


def packages() -> dict[str, str]:
    """Versions of what decodes, resizes and computes: part of the key of all that is kept on disk."""
    return {name: version(name) for name in ("torch", "torchvision", "pillow")}


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images (B, 1 or 3, H, W) with 1 or 3 channels; any type.

    Raises:
        UserError: coloured images for a network that sees grey: there is no one way to make them so.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    if bool((images[:, :1] != images).any()):
        raise UserError("the images have colours and this protocol's network takes grey ones; convert them first")
    return images[:, :1]
