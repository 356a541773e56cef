"""MaskGIT's VQGAN: its port to torch in MAGE's repository beside ours.

    python benchmarks/parity/maskgit_vqgan.py --public DIR    # a copy of LTH14/mage

Latents before the codebook, tokens of images, and images of other tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import quantised
from harness import Parity, Tensors, imported, run
from quantised import CODES, DIM, INPUTS, SIDE, Parts, codes_of, grid_of
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "ch": 32, "out_ch": 3, "ch_mult": (1, 2, 1), "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3,
    "resolution": SIDE, "z_channels": DIM, "double_z": False,
}  # fmt: skip


def build(public: Path) -> nn.Module:
    code = imported(public, "taming.modules.diffusionmodules.model")
    quantiser = imported(public, "taming.modules.vqvae.quantize").VectorQuantizer2(CODES, DIM, beta=0.25)
    # its decoder convolves what it doubles, its encoder pools
    return Parts(code.Encoder(**SIZES), code.Decoder(**SIZES, resamp_with_conv=True), quantiser, 0)


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    latents = network.encoder(inputs["images"])
    return {
        "latents": latents,
        "tokens": grid_of(network.quantize(latents)[2][2]),
        "images": network.decoder(codes_of(network.quantize.embedding.weight, inputs["tokens"])),
    }


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    return quantised.ours("maskgit-vqgan", state, inputs)


PARITY = Parity("maskgit_vqgan", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)
