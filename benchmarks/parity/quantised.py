"""What the parity scripts of VQ tokenizers share: a public autoencoder in parts, and ours, on equal inputs."""

from __future__ import annotations

from typing import Any

import torch
from harness import Input, Tensors, converted
from torch import Tensor, nn

SIDE, GRID, CODES, DIM = 16, 4, 24, 8
INPUTS = {"images": Input((2, 3, SIDE, SIDE)), "tokens": Input((2, GRID * GRID), below=CODES)}
"""Images in the range of the public network, which ours gets as (x + 1) / 2 if that range is -1 ... 1."""


class Parts(nn.Module):
    """The parts of a public VQ autoencoder under their names in its state dict."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantize: nn.Module, latent_width: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantize = encoder, decoder, quantize
        if latent_width:
            self.quant_conv = nn.Conv2d(latent_width, DIM, 1)
            self.post_quant_conv = nn.Conv2d(DIM, latent_width, 1)


def theirs(network: Any, codes: Tensor, inputs: Tensors) -> dict[str, Tensor]:
    """What `ours` has, by the `Parts` of a public network; `codes` (B, D, h, w) of the tokens of `inputs`."""
    latents = network.quant_conv(network.encoder(inputs["images"]))
    return {
        "latents": latents, "tokens": grid_of(network.quantize(latents)[2][2]),
        "images": network.decoder(network.post_quant_conv(codes)),
    }  # fmt: skip


def ours(layout: str, state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    """Latents before the codebook, tokens of the images, and images of other tokens."""
    network, x = converted(layout, state), inputs["images"]
    network.grid = (GRID, GRID)  # of these images; its convolutions take any
    is_zero_one = network.pixel_range == "zero_one"
    paint = network.paint(inputs["tokens"])
    return {
        "latents": network.to_codes(network.encoder(x)),
        "tokens": network.encode(x if is_zero_one else (x + 1) / 2).view(-1, GRID, GRID),
        "images": paint if is_zero_one else 2 * paint - 1,
    }


def codes_of(table: Tensor, tokens: Tensor) -> Tensor:
    """(B, L) -> (B, D, h, w)."""
    found: Tensor = table[tokens].mT.unflatten(2, (GRID, GRID))
    return found


def grid_of(indices: Tensor) -> Tensor:
    """Indices of any shape -> (B, h, w)."""
    return indices.reshape(-1, GRID, GRID).to(torch.int64)
