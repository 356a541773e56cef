"""MAE: the official network, loss and encoder beside ours.

    python benchmarks/parity/mae.py --public DIR    # a copy of facebookresearch/mae

Predictions of masked patches, the encoder's features of a whole picture, and the loss of normalised patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

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

from maskgen.tokenizers.image.patches import patchify

RATIO = 0.75


def build(public: Path) -> nn.Module:
    vars(np)["float"] = float  # which the public code still uses
    code = imported(public, "models_mae")
    block = code.Block
    with mock.patch.object(code, "Block", lambda *sizes, qk_scale=None, **keys: block(*sizes, **keys)):  # noqa: ARG005
        network: nn.Module = code.MaskedAutoencoderViT(**SIZES, decoder_depth=1)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    with drawn(rand=[inputs["order"]]):
        loss, outputs, mask = network(inputs["pictures"], RATIO)
    with drawn(rand=[torch.arange(SIDE**2).float().expand(len(outputs), -1)]):
        whole = network.forward_encoder(inputs["pictures"], 0.0)[0]
    return {"outputs": outputs[mask.bool()], "features": whole[:, 1:], "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, tokens = converted("mae", state), our_tokens(inputs["pictures"])
    visible = visible_of(inputs, int(SIDE**2 * (1 - RATIO)))
    value = predict(network, tokens, visible)
    truth = patchify(inputs["pictures"], PATCH)[~visible.is_kept()]
    return {
        "outputs": pixels_first(value), "features": network.features(tokens), "loss": squared_error(value, truth)
    }  # fmt: skip


PARITY = Parity("mae", PICTURES, build, theirs, ours, fixed=POSITIONS)

if __name__ == "__main__":
    run(PARITY, __doc__)
