"""The VQGAN family: taming transformers, LDM, LlamaGen and MaskGIT's tokenizer as settings of one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer, Reconstructed
from maskgen.tokenizers.image.latent import PixelRange

Attention = Literal["none", "middle", "lowest"]
GROUPS, EPS = 32, 1e-6


class NormConvBlock(nn.Module):
    """x + convolutions of x: twice group norm, SiLU and a 3 x 3 convolution.

    Args:
        n_in, n_out: channels; a 1 x 1 convolution makes them equal on the way around.
        is_plain: MaskGIT's form: no biases, and the way around starts at the *output* of the convolutions, so it has
            `n_out` channels on both sides. With equal channels it is x itself in both forms.
    """

    def __init__(self, n_in: int, n_out: int, is_plain: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(GROUPS, n_in, EPS), nn.GroupNorm(GROUPS, n_out, EPS)
        self.conv_1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=not is_plain)
        self.conv_2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=not is_plain)
        around = nn.Conv2d(n_out if is_plain else n_in, n_out, 1, bias=not is_plain)
        self.around = around if n_in != n_out else None
        self.is_plain = is_plain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        change: Tensor = self.conv_2(F.silu(self.norm_2(self.conv_1(F.silu(self.norm_1(x))))))
        if self.around is None:
            return x + change
        base: Tensor = self.around(change if self.is_plain else x)
        return base + change


class PixelAttention(nn.Module):
    """x + attention over all pixels, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, EPS)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1)  # (B, h w, C)
        seen: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, x.shape[2:]))
        return x + seen


class Halving(nn.Module):
    """Half the sides: a strided convolution that pads right and below, or the mean of 2 x 2 pixels."""

    def __init__(self, width: int, is_plain: bool) -> None:
        super().__init__()
        self.conv = None if is_plain else nn.Conv2d(width, width, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        half: Tensor = F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))
        return half


class Doubling(nn.Module):
    """Twice the sides: every pixel repeated, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


@dataclass(frozen=True)
class Pyramid:
    """Sizes that encoder and decoder share.

    Attributes:
        widths: channels of the levels, the finest first; every level but the first halves the sides.
        blocks: of an encoder's level.
        attention: where there is attention over pixels.
        is_plain: MaskGIT's form.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: Attention
    is_plain: bool

    def encoder(self, channels: int, n_out: int) -> nn.Sequential:
        """(B, channels, H, W) -> (B, n_out, h, w)."""
        parts: list[nn.Module] = [nn.Conv2d(channels, self.widths[0], 3, padding=1, bias=not self.is_plain)]
        last = len(self.widths) - 1
        for level, (n_in, width) in enumerate(zip([self.widths[0], *self.widths], self.widths, strict=False)):
            parts += self._level(n_in, width, self.blocks, level == last)
            parts += [Halving(width, self.is_plain)] if level < last else []
        side = 1 if self.is_plain else 3
        out = nn.Conv2d(self.widths[-1], n_out, side, padding=side // 2)
        return nn.Sequential(*parts, *self._middle(), nn.GroupNorm(GROUPS, self.widths[-1], EPS), nn.SiLU(), out)

    def decoder(self, n_in: int, channels: int) -> nn.Sequential:
        """(B, n_in, h, w) -> (B, channels, H, W)."""
        widths = self.widths[::-1]
        parts: list[nn.Module] = [nn.Conv2d(n_in, widths[0], 3, padding=1), *self._middle()]
        for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            parts += self._level(before, width, self.blocks + (not self.is_plain), level == 0)
            parts += [Doubling(width)] if level < len(widths) - 1 else []
        out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        return nn.Sequential(*parts, nn.GroupNorm(GROUPS, widths[-1], EPS), nn.SiLU(), out)

    def _level(self, n_in: int, n_out: int, n_blocks: int, is_lowest: bool) -> list[nn.Module]:
        """Blocks of one resolution, each followed by attention if the level has it."""
        parts: list[nn.Module] = []
        for index in range(n_blocks):
            parts.append(NormConvBlock(n_out if index else n_in, n_out, self.is_plain))
            parts += [PixelAttention(n_out)] if is_lowest and self.attention == "lowest" else []
        return parts

    def _middle(self) -> list[nn.Module]:
        """Blocks at the lowest resolution, with attention after the first if there is any."""
        width, n_blocks = self.widths[-1], self.blocks if self.is_plain else 2
        blocks: list[nn.Module] = [NormConvBlock(width, width, self.is_plain) for _ in range(n_blocks)]
        return blocks if self.attention == "none" else [blocks[0], PixelAttention(width), *blocks[1:]]


@TOKENIZERS.register("vqgan")
class VQGAN(ImageTokenizer):
    """Convolutions and a codebook (Esser et al., arXiv 2012.09841): taming, LDM, LlamaGen's and MaskGIT's networks.

    Published settings: taming f16 has the defaults with `codes: 1024, dim: 256`, LlamaGen VQ-16 `codes: 16384, dim: 8,
    latent_width: 256, is_normalised: true` (71,883,403 parameters), LDM's vq-f8 `multipliers: [1, 2, 2, 4], codes:
    16384, dim: 4`, MaskGIT's `form: maskgit, attention: none, pixel_range: zero_one` (54,515,587 parameters).

    Args:
        image_shape: (C, H, W).
        codes, dim: of the codebook.
        width: channels of the first level.
        multipliers: of the channels of each level; every level but the first halves the sides.
        blocks: of a level; `form: taming` has one more in the decoder.
        latent_width: channels between encoder and codebook, with a 1 x 1 convolution on either side; 0 for neither.
        attention: over pixels: `none`, in the `middle`, or also at the `lowest` level.
        form: `taming`, or `maskgit`: no biases in blocks, pooling instead of strided convolutions, and a shortcut
            from a block's output.
        is_normalised: latents and codes have length 1 (LlamaGen).
        pixel_range: of the network.
        commitment: weight of the distance of latents to their code in training.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        codes: int = 1024,
        dim: int = 256,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_width: int = 256,
        attention: Attention = "lowest",
        form: Literal["taming", "maskgit"] = "taming",
        is_normalised: bool = False,
        pixel_range: PixelRange = "minus_one_one",
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        factor = 2 ** (len(multipliers) - 1)
        if width % GROUPS or min(multipliers, default=0) < 1 or blocks < 1:
            raise ValueError(f"width must be a multiple of {GROUPS}, multipliers and blocks positive, got {width}")
        if height % factor or breadth % factor:
            raise ValueError(f"image sides must be multiples of {factor}, got {height} x {breadth}")
        self.vocab_size, self.grid = codes, (height // factor, breadth // factor)
        self.is_normalised, self.pixel_range, self.commitment = is_normalised, pixel_range, commitment
        inner = latent_width or dim
        pyramid = Pyramid(tuple(width * factor for factor in multipliers), blocks, attention, form == "maskgit")
        self.encoder, self.decoder = pyramid.encoder(channels, inner), pyramid.decoder(inner, channels)
        self.to_codes = nn.Conv2d(inner, dim, 1) if latent_width else nn.Identity()
        self.from_codes = nn.Conv2d(dim, inner, 1) if latent_width else nn.Identity()
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))

    def extra_repr(self) -> str:
        return f"pixel_range={self.pixel_range}, is_normalised={self.is_normalised}"

    def _codes(self) -> Tensor:
        """(V, D), of length 1 if normalised."""
        return F.normalize(self.codebook, dim=-1) if self.is_normalised else self.codebook

    def _latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, L, D)."""
        x = images if self.pixel_range == "zero_one" else 2 * images - 1
        z: Tensor = self.to_codes(self.encoder(x)).flatten(2).mT.float()
        return F.normalize(z, dim=-1) if self.is_normalised else z

    def _nearest(self, z: Tensor) -> Tensor:
        """(B, L, D) -> (B, L): the codes at the least distance."""
        codes = self._codes().float()
        with torch.autocast(z.device.type, enabled=False):
            distance = codes.square().sum(1) - 2 * z @ codes.mT  # less |z|^2, the same for all codes
        return distance.argmin(-1)

    def encode(self, images: Tensor) -> Tensor:
        return self._nearest(self._latents(images))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.paint(tokens).clamp(0, 1)

    def paint(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, C, H, W), not clamped."""
        return self._painted(self._codes()[tokens])

    def _painted(self, quantised: Tensor) -> Tensor:
        """(B, L, D) -> (B, C, H, W)."""
        x: Tensor = self.decoder(self.from_codes(quantised.mT.unflatten(2, self.grid)))
        return x if self.pixel_range == "zero_one" else (x + 1) / 2

    def forward(self, images: Tensor) -> Reconstructed:
        z = self._latents(images)
        tokens = self._nearest(z.detach())
        codes = self._codes()[tokens]
        penalty = F.mse_loss(codes, z.detach()) + self.commitment * F.mse_loss(z, codes.detach())
        return Reconstructed(self._painted(z + (codes - z).detach()), penalty, tokens)
