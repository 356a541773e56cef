"""Error of masked continuous tokens: MAE, CrossMAE, SimMIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Batch, Loss, Point
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training
from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
    draw_times,
    mean_of,
    number_of,
    refuse_dropping,
    sum_of,
)
from maskgen.objectives.difficulty import with_difficulty
from maskgen.objectives.guides import guide_by, visible_of
from maskgen.processes import Absorbing, Process

NumberError = Literal["squared", "absolute"]


@OBJECTIVES.register("masked_regression")
class MaskedRegression(Objective):
    """Mean error of masked tokens, the only ones that are predicted (MAE, arXiv 2111.06377).

    A network that predicts errors (`has_difficulty`) learns that too, whatever the strategy: `relative_loss` is added.

    Args:
        process: absorbing; its mask ratio is MAE's with `schedule: {type: fixed, ratio: 0.75}`.
        normalise: targets are normalised token by token, (x - mean) / sqrt(variance + 1e-6), the variance unbiased
            (MAE, section 4.1): better features, but predictions are no pictures.
        error: of a number: `squared`, or `absolute` (SimMIM).
        decode_ratio: share of the masked tokens that a training step predicts (CrossMAE, arXiv 2401.14391: a third, its
            prediction ratio 0.25 at 75 % masking). A model in evaluation mode predicts all.
    """

    traits = ObjectiveTraits("masking", "continuous", has_streams=True)

    def __init__(
        self, process: Process, normalise: bool = True, decode_ratio: float = 1.0, error: NumberError = "squared"
    ) -> None:
        if not isinstance(process, Absorbing) or process.mask_id:
            raise ValueError("masked_regression needs process absorbing and continuous tokens")
        if not 0 < decode_ratio <= 1:
            raise ValueError(f"decode_ratio must be in (0, 1], got {decode_ratio}")
        self.process, self.strategy = process, process.strategy
        self.normalise, self.decode_ratio, self.error = normalise, decode_ratio, error
        self.makes_tokens = not normalise

    def check(self, context: CheckContext) -> None:
        if self.decode_ratio < 1 and not context.traits.has_independent_decoder:
            raise ValueError(
                f"objective.decode_ratio: {self.decode_ratio} of the masked patches needs a decoder in which they do "
                "not attend to each other; take model.decoder cross, or 1"
            )
        if not self.makes_tokens and context.has_previews:
            raise ValueError(
                "train.preview_every: normalised patches are no image; use 0, or objective.normalise false"
            )

    def __call__(
        self, model: Callable[..., Point], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L, D) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0 = batch.x_0
        t = draw_times(len(x_0), rng, x_0.device)
        guide = guide_by(self.process, model, x_0, batch.cond, rng, progress)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng, guide))
        visible = visible_of(self.process, x_t)
        is_train = is_in_training(model)
        targets = visible.rest()
        if self.decode_ratio < 1 and is_train:
            targets = some_of(targets, self.decode_ratio, rng)
        point = model(x_t, t.float(), batch.cond, subset=visible, targets=targets)
        target = targets.pack(targets.gather(normalised(x_0) if self.normalise else x_0))
        apart = point.value.float() - target
        error = (apart.square() if self.error == "squared" else apart.abs()).mean(-1)  # (M,)
        value = error.sum() / number_of(error, is_train)
        logs = {"loss": mean_of(value), f"{self.error}_error": sum_of(error)}
        return with_difficulty(Loss(value, logs), point.difficulty, error, targets.is_kept())


def normalised(x: Tensor) -> Tensor:
    """Tokens (B, L, D) of mean 0 and variance 1 each, the unbiased one."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


def some_of(tokens: TokenSubset, ratio: float, rng: Rng) -> TokenSubset:
    """round(ratio K) of each row's K tokens, at least 1, at random."""
    chance = rng.uniform(tokens.keep.shape, device=tokens.keep.device)
    if tokens.valid is None:
        n = max(round(tokens.keep.shape[1] * ratio), 1)
        picked = chance.argsort(1)[:, :n].sort(1).values
        return TokenSubset(tokens.keep.gather(1, picked), tokens.length)
    counts = (tokens.valid.sum(1, keepdim=True).double() * ratio).round().clamp(min=1)
    rank = chance.masked_fill(~tokens.valid, 2.0).argsort(1).argsort(1)
    is_picked = (rank < counts) & tokens.valid
    return TokenSubset.of(torch.zeros_like(tokens.is_kept()).scatter(1, tokens.keep, is_picked))
