"""LlamaGen's VQ tokenizer: the network of Halton-MaskGIT's repository beside ours.

    python benchmarks/parity/llamagen.py --public DIR    # a copy of valeoai/Halton-MaskGIT

Latents before the codebook, tokens of images, and images of other tokens; the codebook is normalised.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import quantised
from harness import Parity, Tensors, imported, run
from quantised import CODES, DIM, GRID, INPUTS, Parts
from torch import Tensor, nn

WIDTH, MULTIPLIERS, LATENT = 32, (1, 2, 1), 48


def build(public: Path) -> nn.Module:
    code = imported(public, "Network.vq_model")
    encoder = code.Encoder(ch=WIDTH, ch_mult=MULTIPLIERS, z_channels=LATENT)
    decoder = code.Decoder(ch=WIDTH, ch_mult=MULTIPLIERS, z_channels=LATENT)
    return Parts(encoder, decoder, code.VectorQuantizer(CODES, DIM, 0.25, 0.0, True, False), LATENT)


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    codes = network.quantize.get_codebook_entry(inputs["tokens"].view(-1, GRID, GRID))
    return quantised.theirs(network, codes, inputs)


PARITY = Parity("llamagen", INPUTS, build, theirs, partial(quantised.ours, "llamagen"))

if __name__ == "__main__":
    run(PARITY, __doc__)
