"""MDTv2: the official network, both passes of its loss and its guidance beside ours.

    python benchmarks/parity/mdtv2.py --public DIR    # a copy of sail-sg/MDT

Outputs of all tokens, outputs with tokens dropped (side-interpolater), power-cosine guidance of three channels, and
the sum of both passes' losses with equal noise and equal dropped tokens, and guided samples of four steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from noised import drawn, image_of, kept_first, latent_tokens, loss_of, samples_of, their_samples
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.samplers.guidance import Guidance

STEPS, SIDE, CLASSES, DROPPED, SPREAD = 4, 4, 7, 0.3, 0.37
GUIDANCE = Guidance(scale=3.8, ramp="power_cosine", power=4.0, channels=3)
KEPT = 1 - DROPPED - 0.2 * SPREAD


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "masked_diffusion.models").MDTv2(
        input_size=2 * SIDE, hidden_size=384, depth=3, num_heads=6, num_classes=CLASSES, mask_ratio=DROPPED,
        decode_layer=1,
    )  # fmt: skip
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from masked_diffusion import create_diffusion  # of the public code

    x, t, labels = inputs["latents"], inputs["t"], inputs["labels"]
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    guided = network.forward_with_cfg(
        x.repeat(2, 1, 1, 1), t.repeat(2), both, GUIDANCE.scale, scale_pow=GUIDANCE.power
    )  # fmt: skip
    losses = create_diffusion("").training_losses
    full = losses(network, x, t, {"y": labels}, noise=inputs["noise"])["loss"].mean()
    draws = [torch.tensor([SPREAD]), inputs["order"]]
    with drawn(rand=draws):
        dropped = network(x, t, labels, enable_mask=True)
    with drawn(rand=draws):
        masked = losses(network, x, t, {"y": labels, "enable_mask": True}, noise=inputs["noise_2"])["loss"].mean()
    return {
        "outputs": network(x, t, labels), "dropped": dropped, "guided": guided[: len(x)], "loss": full + masked,
        "samples": their_samples(
            create_diffusion(str(STEPS)), network.forward_with_cfg, inputs["noises"], y=both,
            cfg_scale=GUIDANCE.scale, scale_pow=GUIDANCE.power,
        ),
    }  # fmt: skip


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("mdtv2", state)
    x, t, labels = latent_tokens(inputs["latents"]), inputs["t"].float(), inputs["labels"]
    cond, subset = Condition(labels), kept_first(inputs["order"], KEPT)
    outputs, null = network(x, t, cond), network(x, t, Condition(torch.full_like(labels, NULL)))
    times = (inputs["t"] + 1).double() / 1000
    guided = outputs.guide(null, GUIDANCE.at(times, time_step=1e-3), 4 * GUIDANCE.channels)
    recipe = "image/imagenet-mdtv2-xl"
    full = loss_of(recipe, network, x, latent_tokens(inputs["noise"]), times, cond)
    masked = loss_of(recipe, network, x, latent_tokens(inputs["noise_2"]), times, cond, subset)
    return {
        "outputs": image_of(outputs, SIDE), "dropped": image_of(network(x, t, cond, subset=subset), SIDE),
        "guided": image_of(guided, SIDE), "loss": full + masked,
        "samples": samples_of(recipe, network, inputs["noises"], labels, GUIDANCE),
    }  # fmt: skip


LATENTS = (2, 4, 2 * SIDE, 2 * SIDE)
PARITY = Parity(
    "mdtv2",
    {
        "latents": Input(LATENTS),
        "noise": Input(LATENTS),
        "noises": Input((STEPS + 1, *LATENTS)),
        "noise_2": Input(LATENTS),
        "order": Input((2, SIDE**2)),
        "t": Input((2,), below=1000),
        "labels": Input((2,), below=CLASSES),
    },
    build,
    theirs,
    ours,
)

if __name__ == "__main__":
    run(PARITY, __doc__)
