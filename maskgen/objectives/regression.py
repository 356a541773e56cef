"""Prediction of masked continuous tokens, or of a target computed from them: MAE, CrossMAE, SimMIM, MaskFeat, ..."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Batch, Loss, Point
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training, network_of
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
from maskgen.objectives.targets.base import NumberError, NumberTarget, TargetSpec
from maskgen.objectives.targets.copies import EmaTeacher, require_decay
from maskgen.objectives.targets.pixels import Normalised, Pixels
from maskgen.objectives.targets.source import Source
from maskgen.processes import Absorbing, Process


@OBJECTIVES.register("masked_regression", renamed={"normalise": "target"})
class MaskedRegression(Objective):
    """Error of the predictions of masked tokens, the only ones that are predicted (MAE, arXiv 2111.06377).

    A network that predicts errors (`has_difficulty`) learns that too, whatever the strategy: `relative_loss` is added.

    Args:
        process: absorbing; its mask ratio is MAE's with `schedule: {type: fixed, ratio: 0.75}`.
        target: what is predicted of a token: `normalised` pixels (better features, but predictions are no pictures),
            `pixels`, `hog`, `teacher`, ... A bool is the former `normalise`: normalised pixels or pixels.
        error: of a number of targets that have numbers: `squared`, or `absolute` (SimMIM).
        decode_ratio: share of the masked tokens that a training step predicts (CrossMAE, arXiv 2401.14391: a third, its
            prediction ratio 0.25 at 75 % masking). A model in evaluation mode predicts all.
        teacher_decay: a mask strategy that evaluates the network evaluates a moving average of it, as AttMask and HPM
            do, whose decay rises from this value to 1; null for the network itself.
        layout: of the rows.
    """

    traits = ObjectiveTraits("masking", "continuous", has_streams=True)

    def __init__(
        self,
        process: Process,
        target: TargetSpec | bool = Normalised(),
        decode_ratio: float = 1.0,
        error: NumberError = "squared",
        teacher_decay: float | None = None,
        layout: TokenLayout | int = 0,
    ) -> None:
        if not isinstance(process, Absorbing) or process.mask_id:
            raise ValueError("masked_regression needs process absorbing and continuous tokens")
        if not 0 < decode_ratio <= 1:
            raise ValueError(f"decode_ratio must be in (0, 1], got {decode_ratio}")
        if teacher_decay is not None:
            require_decay(teacher_decay)
        self.process, self.strategy, self.layout = process, process.strategy, layout
        self.decode_ratio, self.teacher_decay = decode_ratio, teacher_decay
        self.spec = (Normalised() if target else Pixels()) if isinstance(target, bool) else target
        self.target = self.spec.build(layout)
        self.error = error
        if isinstance(self.target, NumberTarget):
            self.target.kind = error
        self.teacher: EmaTeacher | None = None
        self.makes_tokens, self.checkpoint = self.spec.is_image, self.spec.checkpoint
        self.copies_network = self.spec.copies_network or teacher_decay is not None

    def check(self, context: CheckContext) -> None:
        self.spec.check(context)
        if self.decode_ratio < 1 and not context.traits.has_independent_decoder:
            raise ValueError(
                f"objective.decode_ratio: {self.decode_ratio} of the masked patches needs a decoder in which they do "
                "not attend to each other; take model.decoder cross, or 1"
            )
        if self.error != "squared" and not isinstance(self.target, NumberTarget):
            raise ValueError(
                f"objective.error: {self.error} is of targets that are numbers (pixels, normalised, hog); leave it out"
            )
        if not self.makes_tokens and context.has_previews:
            raise ValueError("train.preview_every: this target is no image; use 0, or objective.target pixels")
        if self.teacher_decay is not None and self.process.strategy.requires is None:
            raise ValueError(
                "objective.teacher_decay: this mask strategy does not evaluate the network; use process.strategy "
                "attention or hard, or leave it out"
            )

    def target_width(self, source: nn.Module | None) -> int:
        assert source is None or isinstance(source, Source)
        return self.spec.width(self.layout, source)

    def attach(self, network: nn.Module, source: nn.Module | None) -> None:
        assert source is None or isinstance(source, Source)
        self.target.attach(network, source)
        if self.teacher_decay is not None:
            self.teacher = EmaTeacher(network, self.teacher_decay)
        parts = {"target": self.target, "teacher": self.teacher}
        self.state = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def __call__(
        self, model: Callable[..., Point], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L, D) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0, is_train = batch.x_0, is_in_training(model)
        if is_train:
            self._update(model, progress)
        t = draw_times(len(x_0), rng, x_0.device)
        scorer = model if self.teacher is None else self.teacher.average
        guide = guide_by(self.process, scorer, x_0, batch.cond, rng, progress)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng, guide))
        visible = visible_of(self.process, x_t)
        targets = visible.rest()
        if self.decode_ratio < 1 and is_train:
            targets = some_of(targets, self.decode_ratio, rng)
        point = model(x_t, t.float(), batch.cond, subset=visible, targets=targets)
        truth = self.target(x_0)
        error = self.target.error(point.value.float(), truth, targets)  # (M,)
        value = error.sum() / number_of(error, is_train)
        logs = {"loss": mean_of(value), self.target.error_name(): sum_of(error), **self.target.logs(truth)}
        return with_difficulty(Loss(value, logs), point.difficulty, error, targets.is_kept())

    def _update(self, model: object, progress: float) -> None:
        """Let teachers follow the network, once per step."""
        network = network_of(model)
        self.target.update(network, progress)
        if self.teacher is not None:
            self.teacher.update(network, progress)


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
