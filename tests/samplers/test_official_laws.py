"""MaskGIT's and aMUSEd's decoding have the law of the official scheduler, which diffusers has: known tokens, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_amused import AmusedScheduler
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.samplers import MaskedSampler
from maskgen.samplers.masked.presets import amused, maskgit
from tests.cases import each

V, L, N = 3, 16, 2000
KNOWN = torch.tensor([2, V, V, 0, V, V, V, 1] + 8 * [V])
LOGITS = 1.5 * Rng.stream("logits").normal((L, V)).float()


def start() -> Tensor:
    return KNOWN.expand(N, -1).clone()


def official(temperatures: Sequence[float]) -> list[Tensor]:
    """x_t after each step of the official scheduler, with these choice temperatures."""
    scheduler = AmusedScheduler(mask_token_id=V)
    scheduler.set_timesteps(len(temperatures))
    scheduler.temperatures = torch.tensor(temperatures)
    share, generator, x_t, steps = float((KNOWN == V).float().mean()), torch.Generator().manual_seed(0), start(), []
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(LOGITS.expand(N, -1, -1), timestep, x_t, share, generator).prev_sample
        steps.append(x_t)
    return steps


def ours(sampler: MaskedSampler) -> list[Tensor]:
    steps: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Tensor:
        return LOGITS.expand(len(x_t), -1, -1)

    sampler(denoise, start(), Rng.stream(1), mask_id=V, on_step=lambda _, __, x_t: steps.append(x_t.clone()))
    return steps


@each("n", [4, 8, 12])
def test_tokens_and_masks_of_every_step_have_the_law_of_the_official_scheduler(n: int) -> None:
    falling = torch.linspace(2, 0, n).tolist()
    of_maskgit = [4.5 * (1 - (step + 1) / n) for step in range(n)]
    for sampler, temperatures in ((amused(n), falling), (maskgit(n), of_maskgit)):
        mine, theirs = ours(sampler), official(temperatures)
        for one, other in zip(mine, theirs, strict=True):
            is_equal = (one == V).sum(1) == (other == V).sum(1)
            assert float(is_equal.double().mean()) > 0.999  # its float32 noise has ties, which unmask one token more
            p, q = (F.one_hot(x, V + 1).double().mean(0) for x in (one, other))
            spread = ((p + q) / 2 * (1 - (p + q) / 2) * 2 / N).sqrt()
            z = ((p - q) / spread.clamp(min=1e-12)).abs()
            assert float((z > 3).double().mean()) <= 1 / 32, z  # at most one in 32 by chance
            assert float(z.max()) < 4.5
            assert torch.equal(one[:, KNOWN < V], start()[:, KNOWN < V])
