"""eMIGM: the official XS with its 8 heads, its encoder of all tokens, and its loss beside ours.

    python benchmarks/parity/emigm.py --public DIR    # a copy of ML-GSAI/eMIGM

The decoder's output z with visible tokens only and with [MASK]s in the encoder, z without class (the shared token),
the head's prediction, and the loss of masked tokens with equal noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Parity, Tensors, converted, imported, run
from tokenwise import INPUTS, is_masked, our_inputs, our_loss, sizes, their_loss, their_z
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "models.emigm").eMIGM(
        **sizes(), use_unsup_cfg=True, mask_strategy="exp", sampling_algo="dpm-solver"
    )
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    z = their_z(network, inputs)
    x, t = network.patchify(inputs["latents"]), inputs["t"][0].flatten()
    mask = is_masked(inputs).float()
    null = network.forward_mae_decoder(
        network.forward_mae_encoder(x, mask, network.fake_latent.repeat(len(x), 1)), mask
    )
    head, loss = network.diffloss.net(x.flatten(0, 1), t, z.flatten(0, 1)), their_loss(network, inputs)
    network.use_mae = False
    return {"z": z, "z_null": null, "z_all": their_z(network, inputs), "head": head, "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("emigm", state)
    x_0, x_t, cond = our_inputs(inputs)
    t = torch.ones(len(x_t))
    head, null = network(x_t, t, cond), network(x_t, t, Condition(torch.full_like(cond.labels, NULL)))
    loss = our_loss("image/imagenet-emigm-xs", network, inputs)
    network.encode_visible = False
    return {
        "z": head.z, "z_null": null.z, "z_all": network(x_t, t, cond).z,
        "head": head.net(x_0.flatten(0, 1), inputs["t"][0].flatten().float(), head.z.flatten(0, 1)), "loss": loss,
    }  # fmt: skip


PARITY = Parity("emigm", INPUTS, build, theirs, ours, skipped=("fake_latent",))  # the mask token, stored twice

if __name__ == "__main__":
    run(PARITY, __doc__)
