"""KL autoencoders of latent diffusion in original names, as MAR's KL-16: the network of MAR's repository beside ours.

    python benchmarks/parity/kl.py --public DIR    # a copy of LTH14/mar

Mean and standard deviation of latents, and images of latents. The official class has sizes of its own, so its encoder
and decoder are made small here.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import Input, Parity, Tensors, imported, run
from torch import Tensor, nn

from maskgen.checkpoints.convert.conversion import run as convert
from maskgen.tokenizers.image.latent import KLTokenizer
from maskgen.tokenizers.image.patches import patchify, unpatchify

SIDE, GRID, CHANNELS = 16, 4, 16
SIZES: dict[str, Any] = {"ch": 32, "ch_mult": (1, 2, 1), "num_res_blocks": 1, "resolution": SIDE}


class Public(nn.Module):
    """The parts of the official autoencoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quant_conv = nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(CHANNELS, CHANNELS, 1)


def build(public: Path) -> nn.Module:
    code = imported(public, "models.vae")
    encoder = code.Encoder(z_channels=CHANNELS, attn_resolutions=(GRID,), **SIZES)
    return Public(encoder, code.Decoder(z_channels=CHANNELS, **SIZES))


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    mean, log_variance = network.quant_conv(network.encoder(inputs["images"])).chunk(2, 1)
    return {
        "mean": mean,
        "std": torch.exp(0.5 * log_variance.clamp(-30, 20)),
        "images": network.decoder(network.post_quant_conv(inputs["latents"])),
    }


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        torch.save(state, f"{folder}/kl16.ckpt")
        convert(f"{folder}/kl16.ckpt", f"{folder}/kl")
        tokenizer = KLTokenizer((3, SIDE, SIDE), f"{folder}/kl")
    mean, std = tokenizer.moments((inputs["images"] + 1) / 2).chunk(2, -1)
    latents = unpatchify(patchify(inputs["latents"], 1), (GRID, GRID), 1)
    return {
        "mean": unpatchify(mean, (GRID, GRID), 1) / tokenizer.scale,
        "std": unpatchify(std, (GRID, GRID), 1) / tokenizer.scale,
        "images": tokenizer.net.decode(latents).sample,
    }


PARITY = Parity(
    "kl",
    {"images": Input((2, 3, SIDE, SIDE)), "latents": Input((2, CHANNELS, GRID, GRID))},
    build,
    theirs,
    ours,
)

if __name__ == "__main__":
    run(PARITY, __doc__)
