"""Convolutional autoencoders with a quantised bottleneck, trained here: VQ and FSQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.checkpointing import Recomputable
from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer, Reconstructed
from maskgen.tokenizers.image.quantise import FSQ, VQ


class ResidualBlock(Recomputable):
    """x + conv1x1(GELU(conv3x3(GroupNorm(x)))), starting as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(8, width // 4), width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.outer(F.gelu(self.inner(self.norm(x))))
        return x + change


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))


class Encoder(nn.Module):
    """(B, C, H, W) -> (B, D, H / f, W / f): a strided convolution to a quarter, residual blocks, halvings to f."""

    def __init__(self, channels: int, width: int, depth: int, factor: int, dim: int) -> None:
        super().__init__()
        stem = min(factor, 4)
        self.stem = nn.Conv2d(channels, width, 2 * stem, stem, stem // 2)
        stages: list[nn.Module] = [_blocks(width, depth)]
        while stem < factor:
            stages += [nn.Conv2d(width, width, 4, 2, 1), _blocks(width, depth)]
            stem *= 2
        self.stages = nn.Sequential(*stages)
        self.out = nn.Conv2d(width, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        z: Tensor = self.out(self.stages(self.stem(x)))
        return z


class Decoder(nn.Module):
    """(B, D, h, w) -> (B, C, f h, f w): residual blocks, then doublings by pixel shuffle, the last one bare.

    The blocks after a doubling have `fine_width` channels: at full width they would cost more than all the rest.
    """

    def __init__(self, channels: int, width: int, fine_width: int, depth: int, factor: int, dim: int) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1), _blocks(width, depth)]
        while factor > 2:
            stages += [nn.Conv2d(width, 4 * fine_width, 1), nn.PixelShuffle(2), _blocks(fine_width, 2)]
            width, factor = fine_width, factor // 2
        self.stages = nn.Sequential(*stages, nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.stages(z.contiguous(memory_format=torch.channels_last))
        return (x + 1) / 2


class QuantisedAutoencoder(ImageTokenizer):
    """Encoder, quantiser, decoder. Images are `image_shape`; the grid is `factor` times smaller."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        quantiser: FSQ | VQ,
        factor: Literal[2, 4, 8, 16],
        width: int,
        fine_width: int,
        depth: int,
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        if height % factor or breadth % factor:
            raise ValueError(f"image sides must be multiples of factor {factor}, got {height} x {breadth}")
        self.grid = (height // factor, breadth // factor)
        self.vocab_size = quantiser.n_codes
        self.quantiser = quantiser
        self.encoder = Encoder(channels, width, depth, factor, quantiser.dim)
        self.decoder = Decoder(channels, width, fine_width, 2 * depth, factor, quantiser.dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Reconstructed:
        z = self.encoder(images).flatten(2).mT  # (B, L, D)
        quantised, codes, penalty = self.quantiser(z)
        return Reconstructed(self._paint(quantised), penalty, codes)

    def encode(self, images: Tensor) -> Tensor:
        codes: Tensor = self.quantiser(self.encoder(images).flatten(2).mT)[1]
        return codes

    def decode(self, tokens: Tensor) -> Tensor:
        return self._paint(self.quantiser.lookup(tokens)).clamp(0, 1)

    def _paint(self, quantised: Tensor) -> Tensor:
        images: Tensor = self.decoder(quantised.mT.unflatten(2, self.grid))
        return images


@TOKENIZERS.register("vq")
class VQTokenizer(QuantisedAutoencoder):
    """Learned codebook by moving averages, with revival of dead codes (VQ-VAE, arXiv 1711.00937).

    Args:
        image_shape: (C, H, W).
        codes, dim: size of the codebook.
        factor: pixels to a token along each side.
        width, fine_width, depth: of the networks.
        decay, commitment, revive_below: see `quantise.VQ`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        codes: int = 1024,
        dim: int = 16,
        factor: Literal[2, 4, 8, 16] = 4,
        width: int = 64,
        fine_width: int = 48,
        depth: int = 2,
        decay: float = 0.99,
        commitment: float = 0.25,
        revive_below: float = 0.05,
    ) -> None:
        quantiser = VQ(codes, dim, decay, commitment, revive_below)
        super().__init__(image_shape, quantiser, factor, width, fine_width, depth)


@TOKENIZERS.register("fsq")
class FSQTokenizer(QuantisedAutoencoder):
    """Finite scalar quantisation: no codebook to learn or to collapse (arXiv 2309.15505).

    Args:
        image_shape: (C, H, W).
        levels: of each latent dimension; their product is the number of codes.
        factor, width, fine_width, depth: as for `vq`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        levels: Sequence[int] = (8, 8, 8),
        factor: Literal[2, 4, 8, 16] = 4,
        width: int = 64,
        fine_width: int = 48,
        depth: int = 2,
    ) -> None:
        super().__init__(image_shape, FSQ(levels), factor, width, fine_width, depth)
        self.levels = tuple(levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
