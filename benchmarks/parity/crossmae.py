"""CrossMAE: the official network with its mix of encoder layers beside ours.

    python benchmarks/parity/crossmae.py --public DIR    # a copy of TonyLianLong/CrossMAE

Predictions of all masked patches and the loss of a third of them, with `use_input` as in the published command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Parity, Tensors, converted, imported, run
from masked_patches import (
    PATCH,
    PICTURES,
    POSITIONS,
    SIDE,
    SIZES,
    our_tokens,
    pixels_first,
    predict,
    squared_error,
    visible_of,
)
from noised import drawn
from torch import Tensor, nn

from maskgen.core.subset import TokenSubset
from maskgen.tokenizers.image.patches import patchify

RATIO, DECODED = 0.75, 0.25
KEPT = int(SIDE**2 * (1 - RATIO))


def build(public: Path) -> nn.Module:
    vars(np)["float"] = float  # which the public code still uses
    network: nn.Module = imported(public, "models_cross").MaskedAutoencoderViT(
        **SIZES, decoder_depth=2, weight_fm=True, use_input=True
    )
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    with torch.autocast("cpu", enabled=False), drawn(rand=[inputs["order"], inputs["order"]]):
        latent, mask, restore, coords = network.forward_encoder(inputs["pictures"], RATIO, RATIO)
        outputs, _ = network.forward_decoder(latent, mask, restore, coords, RATIO, RATIO)
        latent, mask, restore, coords = network.forward_encoder(inputs["pictures"], RATIO, DECODED)
        some, _ = network.forward_decoder(latent, mask, restore, coords, RATIO, DECODED)
    return {"outputs": outputs, "loss": network.forward_loss(inputs["pictures"], some, mask, coords)[0]}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, tokens, visible = converted("crossmae", state), our_tokens(inputs["pictures"]), visible_of(inputs, KEPT)
    outputs = predict(network, tokens, visible)
    first = KEPT + int(SIDE**2 * (RATIO - DECODED))
    targets = TokenSubset(inputs["order"].argsort(1)[:, first:].sort(1).values, SIDE**2)
    truth = targets.gather(patchify(inputs["pictures"], PATCH)).flatten(0, 1)
    some = predict(network, tokens, visible, targets)
    return {"outputs": pixels_first(outputs).unflatten(0, (len(tokens), -1)), "loss": squared_error(some, truth)}


PARITY = Parity("crossmae", PICTURES, build, theirs, ours, fixed=POSITIONS)

if __name__ == "__main__":
    run(PARITY, __doc__)
