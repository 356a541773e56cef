"""VQGAN: the network of taming transformers beside ours.

    python benchmarks/parity/taming_vqgan.py --public DIR    # a copy of CompVis/taming-transformers

Latents before the codebook, tokens of images, and images of other tokens.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import quantised
from harness import Parity, Tensors, imported, run
from quantised import CODES, DIM, GRID, INPUTS, SIDE, Parts, codes_of
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "ch": 32, "out_ch": 3, "ch_mult": (1, 2, 1), "num_res_blocks": 2, "attn_resolutions": [GRID], "in_channels": 3,
    "resolution": SIDE, "z_channels": 48, "double_z": False, "resamp_with_conv": True,
}  # fmt: skip


def build(public: Path) -> nn.Module:
    code = imported(public, "taming.modules.diffusionmodules.model")
    quantiser = imported(public, "taming.modules.vqvae.quantize").VectorQuantizer2(CODES, DIM, beta=0.25)
    return Parts(code.Encoder(**SIZES), code.Decoder(**SIZES), quantiser, SIZES["z_channels"])


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    return quantised.theirs(network, codes_of(network.quantize.embedding.weight, inputs["tokens"]), inputs)


PARITY = Parity("taming_vqgan", INPUTS, build, theirs, partial(quantised.ours, "taming"))

if __name__ == "__main__":
    run(PARITY, __doc__)
