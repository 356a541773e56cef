"""Losses of our Gaussian objectives with given noise, times and dropped tokens: for layouts of denoisers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.processes.preconditioned import Preconditioned
from maskgen.recipes.load import load_recipe
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.guidance import Guidance
from maskgen.tokenizers.image.patches import patchify, unpatchify

PATCH = 2


def latent_tokens(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, L, D), patches of 2."""
    return patchify(latents, PATCH)


def latents_of(tokens: Tensor, side: int) -> Tensor:
    """(B, L, D) -> (B, C, H, W); `side` of the square grid of tokens."""
    return unpatchify(tokens, (side, side), PATCH)


def image_of(field: Any, side: int) -> Tensor:
    """What a network predicts as the public code lays it out: (B, C, H, W), channels of a variance last."""
    parts = [field.value] if field.variance is None else [field.value, field.variance]
    return torch.cat([latents_of(part, side) for part in parts], 1)


def kept_first(order: Tensor, keep_ratio: float) -> TokenSubset:
    """The tokens of lowest number (B, L), rounded down as all public codes do."""
    length = order.shape[1]
    return TokenSubset(order.argsort(1)[:, : int(length * keep_ratio)].sort(1).values, length)


def loss_of(
    recipe: str,
    network: Any,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    cond: Condition,
    subset: TokenSubset | None = None,
) -> Tensor:
    """The loss of a shipped recipe's objective, no condition dropped.

    Args:
        recipe: name of the recipe.
        network: our network.
        x_0, noise: (B, L, D).
        t: (B,) float64, as the process has it.
        cond: of the rows.
        subset: kept tokens; None for all.
    """
    objective: Any = load_recipe(recipe).build_objective()
    objective.label_dropout = 0.0
    objective.process.draw_noise = lambda x_0, rng: noise  # noqa: ARG005 - one signature
    value: Tensor = objective._pass(network, Batch(x_0, cond), t, Rng.stream(0), subset)[0]
    return value


@contextmanager
def drawn(**values: Sequence[Tensor]) -> Iterator[None]:
    """Torch's draws of public code (`rand`, `randn`, `randn_like`, `randint`) are these tensors, in turn."""
    with mock.patch.multiple(torch, **{name: mock.Mock(side_effect=list(given)) for name, given in values.items()}):
        yield


def samples_of(recipe: str, network: Any, noises: Tensor, labels: Tensor, guidance: Guidance) -> Tensor:
    """(B, C, H, W), as many DDPM steps as there are noises after the first; learned variance, linspace spacing.

    Args:
        recipe: name of a shipped recipe, for its process.
        network: our network.
        noises: (1 + N, B, C, H, W), the start and that of each step.
        labels: (B,).
        guidance: of the sampling.
    """
    process: Any = load_recipe(recipe).field_process()
    start, *steps = noises.unbind()
    denoise = guidance.bind(
        Preconditioned(process, network), Condition(labels), time_step=1 / process.steps, patch_area=PATCH**2
    )
    sampler = FieldSampler("ddpm", len(steps), "linspace")
    draws = mock.Mock(side_effect=[latent_tokens(noise).mT for noise in steps])
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", draws):
        x_0 = sampler(denoise, latent_tokens(start), Rng.stream(0), process=process)
    return latents_of(x_0, start.shape[-1] // PATCH)


def their_samples(diffusion: Any, model: Any, noises: Tensor, **arguments: Any) -> Tensor:
    """The same of a public diffusion, whose guided model is given every row twice."""
    start, *steps = (noise.repeat(2, 1, 1, 1) for noise in noises.unbind())
    with drawn(randn_like=steps):
        both: Tensor = diffusion.p_sample_loop(
            model, start.shape, start, clip_denoised=False, model_kwargs=arguments, device="cpu"
        )
    return both[: len(both) // 2]
