"""MAR: the official network, head, loss and sampler with guidance beside ours.

    python benchmarks/parity/mar.py --public DIR    # a copy of LTH14/mar

The decoder's output z, the head's prediction, the loss of masked tokens with equal noise, and samples of four steps
with linear guidance and temperature: equal order, equal noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Parity, Tensors, converted, imported, run
from tokenwise import (
    HEAD_STEPS,
    INPUTS,
    STEPS,
    our_inputs,
    our_loss,
    our_sample,
    sampling_of,
    sizes,
    their_loss,
    their_z,
)
from torch import Tensor, nn

from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.presets import mar

SCALE, TEMPERATURE = 3.0, 0.9


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "models.mar").MAR(**sizes())
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    z = their_z(network, inputs)
    x, t = network.patchify(inputs["latents"]).flatten(0, 1), inputs["t"][0].flatten()
    with sampling_of(network, inputs):
        samples = network.sample_tokens(
            len(z), num_iter=STEPS, cfg=SCALE, cfg_schedule="linear", labels=inputs["labels"], temperature=TEMPERATURE
        )
    return {
        "z": z, "head": network.diffloss.net(x, t, z.flatten(0, 1)), "loss": their_loss(network, inputs),
        "samples": samples,
    }  # fmt: skip


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("mar", state)
    x_0, x_t, cond = our_inputs(inputs)
    head = network(x_t, torch.ones(len(x_t)), cond)
    sampler = mar(STEPS, TEMPERATURE, head=FieldSampler("ddpm", HEAD_STEPS, "linspace"))
    return {
        "z": head.z, "head": head.net(x_0.flatten(0, 1), inputs["t"][0].flatten().float(), head.z.flatten(0, 1)),
        "loss": our_loss("image/imagenet-mar-b", network, inputs),
        "samples": our_sample(network, inputs, sampler, Guidance(SCALE, "revealed")),
    }  # fmt: skip


PARITY = Parity("mar", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)
