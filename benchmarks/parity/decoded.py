"""Greedy decodings and losses with given masks, for layouts of masked tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.recipes.load import load_recipe
from maskgen.samplers import MaskedSampler


def greedy(sampler: MaskedSampler, logits_of: Callable[[Tensor], Tensor], x_1: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, L) that a sampler makes of x_1 (B, L), the mode of every token.

    The largest id of x_1 is [MASK]; `logits_of` gives the logits of x_t (B, L).
    """

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Tensor:  # noqa: ARG001
        return logits_of(x_t)

    return replace(sampler, temperature=0.0)(denoise, x_1, Rng.stream(0), mask_id=int(x_1.max()), grid=grid)


def loss_of_masks(recipe: str, network: Any, x_0: Tensor, x_t: Tensor, noise: Tensor, cond: Condition | None) -> Tensor:
    """The loss of a shipped recipe's objective at given masked tokens x_t (B, L), no condition dropped.

    Args:
        recipe: name of the recipe.
        network: our network.
        x_0: tokens (B, L).
        x_t: with [MASK].
        noise: (B, L) that masked them, the lowest first.
        cond: of the rows.
    """
    settings = load_recipe(recipe)
    objective: Any = settings.build_objective(network.vocab_size)
    objective.label_dropout = 0.0
    t = (x_t == network.vocab_size).double().mean(1)
    with mock.patch.object(objective, "_corrupt", return_value=(t, x_t, noise)):
        value: Tensor = objective(
            network, Batch(x_0, cond), Rng.stream(0), keep_ratio=settings.train.lowest_keep_ratio
        ).value
    return value


@contextmanager
def greedily() -> Iterator[None]:
    """Public code that samples the mode of every distribution, adds no Gumbel noise of NumPy and stays on the CPU."""

    def mode(self: torch.distributions.Categorical, *_: object) -> Tensor:
        return self.logits.argmax(-1)

    def nothing(*_: object, size: tuple[int, ...] = ()) -> Any:
        return torch.zeros(size).numpy()

    with (
        mock.patch.object(torch.distributions.Categorical, "sample", mode),
        mock.patch("numpy.random.gumbel", nothing),
        mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self),
    ):
        yield
