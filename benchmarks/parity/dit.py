"""DiT: the official network and loss beside ours.

    python benchmarks/parity/dit.py --public DIR    # a copy of facebookresearch/DiT

Outputs (mean and variance), the training loss with equal noise (squared error and variational bound), guidance of the
first three channels, which is what the official sampler does, and its samples of four steps with equal noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from noised import image_of, latent_tokens, loss_of, samples_of, their_samples
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.nn.embeddings import sincos_2d
from maskgen.samplers.guidance import Guidance

SIDE, CLASSES, SCALE, STEPS = 4, 7, 2.5, 4


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "models").DiT(
        input_size=2 * SIDE, hidden_size=384, depth=2, num_heads=6, num_classes=CLASSES
    )
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from diffusion import create_diffusion  # of the public code

    x, t, labels = inputs["latents"], inputs["t"], inputs["labels"]
    losses = create_diffusion("").training_losses(network, x, t, {"y": labels}, noise=inputs["noise"])
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    guided = network.forward_with_cfg(x.repeat(2, 1, 1, 1), t.repeat(2), both, SCALE)[: len(x)]
    samples = their_samples(
        create_diffusion(str(STEPS)), network.forward_with_cfg, inputs["noises"], y=both, cfg_scale=SCALE
    )
    return {
        "outputs": network(x, t, labels), "guided": guided, "loss": losses["loss"].mean(), "samples": samples
    }  # fmt: skip


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("dit", state)
    x, t, cond = latent_tokens(inputs["latents"]), inputs["t"].float(), Condition(inputs["labels"])
    outputs = image_of(network(x, t, cond), SIDE)
    null = image_of(network(x, t, Condition(torch.full_like(inputs["labels"], NULL))), SIDE)
    guided = torch.cat([null[:, :3] + SCALE * (outputs - null)[:, :3], outputs[:, 3:]], 1)
    times = (inputs["t"] + 1).double() / 1000
    loss = loss_of("image/imagenet-dit-xl", network, x, latent_tokens(inputs["noise"]), times, cond)
    guidance = Guidance(SCALE, channels=3)
    samples = samples_of("image/imagenet-dit-xl", network, inputs["noises"], inputs["labels"], guidance)
    return {"outputs": outputs, "guided": guided, "loss": loss, "samples": samples}


LATENTS = (2, 4, 2 * SIDE, 2 * SIDE)
PARITY = Parity(
    "dit",
    {
        "latents": Input(LATENTS),
        "noise": Input(LATENTS),
        "noises": Input((STEPS + 1, *LATENTS)),
        "t": Input((2,), below=1000),
        "labels": Input((2,), below=CLASSES),
    },
    build,
    theirs,
    ours,
    fixed={"pos_embed": lambda shape: sincos_2d((SIDE, SIDE), shape[-1])[None]},
)

if __name__ == "__main__":
    run(PARITY, __doc__)
