"""What the scripts of both versions of MDT share: both passes of its loss, its guidance and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported
from noised import drawn, image_of, kept_first, latent_tokens, loss_of, samples_of, their_samples
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.samplers.guidance import Guidance

STEPS, SIDE, CLASSES, DROPPED = 4, 4, 7, 0.3
GUIDANCE = Guidance(scale=3.8, ramp="power_cosine", power=4.0, channels=3)
LATENTS = (2, 4, 2 * SIDE, 2 * SIDE)


def parity_of(layout: str, kind: str, n_decoder: int, keep_ratio: float, draws: Sequence[Tensor] = ()) -> Parity:
    """The comparison of one version.

    Args:
        layout: its name.
        kind: class of the public network.
        n_decoder: blocks of its decoder.
        keep_ratio: of the tokens of a masked pass.
        draws: what a masked pass of the public network draws before the order of the tokens.
    """
    inputs = {
        "latents": Input(LATENTS), "noise": Input(LATENTS), "noises": Input((STEPS + 1, *LATENTS)),
        "noise_2": Input(LATENTS), "order": Input((2, SIDE**2)), "t": Input((2,), below=1000),
        "labels": Input((2,), below=CLASSES),
    }  # fmt: skip
    build = partial(_build, kind=kind, n_decoder=n_decoder)
    return Parity(layout, inputs, build, partial(_theirs, draws=draws), partial(_ours, layout, keep_ratio))


def _build(public: Path, kind: str, n_decoder: int) -> nn.Module:
    network: nn.Module = getattr(imported(public, "masked_diffusion.models"), kind)(
        input_size=2 * SIDE, hidden_size=384, depth=3, num_heads=6, num_classes=CLASSES, mask_ratio=DROPPED,
        decode_layer=n_decoder,
    )  # fmt: skip
    return network


def _theirs(network: Any, inputs: Tensors, draws: Sequence[Tensor]) -> dict[str, Tensor]:
    from masked_diffusion import create_diffusion  # of the public code

    x, t, labels = inputs["latents"], inputs["t"], inputs["labels"]
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    guided = network.forward_with_cfg(
        x.repeat(2, 1, 1, 1), t.repeat(2), both, GUIDANCE.scale, scale_pow=GUIDANCE.power
    )  # fmt: skip
    losses = create_diffusion("").training_losses
    full = losses(network, x, t, {"y": labels}, noise=inputs["noise"])["loss"].mean()
    rand = [*draws, inputs["order"]]
    with drawn(rand=rand):
        dropped = network(x, t, labels, enable_mask=True)
    with drawn(rand=rand):
        masked = losses(network, x, t, {"y": labels, "enable_mask": True}, noise=inputs["noise_2"])["loss"].mean()
    return {
        "outputs": network(x, t, labels), "dropped": dropped, "guided": guided[: len(x)], "loss": full + masked,
        "samples": their_samples(
            create_diffusion(str(STEPS)), network.forward_with_cfg, inputs["noises"], y=both,
            cfg_scale=GUIDANCE.scale, scale_pow=GUIDANCE.power,
        ),
    }  # fmt: skip


def _ours(layout: str, keep_ratio: float, state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted(layout, state)
    x, t, labels = latent_tokens(inputs["latents"]), inputs["t"].float(), inputs["labels"]
    cond, subset = Condition(labels), kept_first(inputs["order"], keep_ratio)
    outputs, null = network(x, t, cond), network(x, t, Condition(torch.full_like(labels, NULL)))
    times = (inputs["t"] + 1).double() / 1000
    guided = outputs.guide(null, GUIDANCE.at(times, time_step=1e-3), 4 * GUIDANCE.channels)
    recipe = f"image/imagenet-{layout}-xl"
    full = loss_of(recipe, network, x, latent_tokens(inputs["noise"]), times, cond)
    masked = loss_of(recipe, network, x, latent_tokens(inputs["noise_2"]), times, cond, subset)
    return {
        "outputs": image_of(outputs, SIDE), "dropped": image_of(network(x, t, cond, subset=subset), SIDE),
        "guided": image_of(guided, SIDE), "loss": full + masked,
        "samples": samples_of(recipe, network, inputs["noises"], labels, GUIDANCE),
    }  # fmt: skip
