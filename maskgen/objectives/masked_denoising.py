"""Squared error of masked patches that are denoised beside clean ones: DiffMAE."""

from __future__ import annotations

from dataclasses import replace

from maskgen.core.predictions import Batch, Condition, FieldDenoiser, Loss, labels_of
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.objectives.base import (
    OBJECTIVES,
    NoiseTimes,
    Objective,
    ObjectiveTraits,
    by_quarter,
    mean_of,
    refuse_dropping,
    sum_of,
)
from maskgen.objectives.guides import guide_by, visible_of
from maskgen.objectives.weights import NoiseWeight, OnTarget
from maskgen.processes import Absorbing, Gaussian, Process
from maskgen.processes.preconditioned import Preconditioned
from maskgen.schedules import Fixed
from maskgen.strategies import MaskStrategy, Random


@OBJECTIVES.register("masked_denoising")
class MaskedDenoising(Objective):
    """Squared error of x_0 on masked tokens; only these are noised (DiffMAE, arXiv 2304.03283, section 3).

    The network takes the visible tokens clean, as the condition `visible`. At t = 1 masked tokens are predicted from
    the visible ones alone: MAE's task.

    Args:
        process: gaussian, of target x_0.
        mask_ratio: exactly round(L ratio) tokens of each row are masked.
        strategy: which tokens are masked first.
        weight: of the squared error by noise level.
        layout: of the rows, continuous tokens.
    """

    traits = ObjectiveTraits("gaussian", "continuous")

    def __init__(
        self,
        process: Process,
        mask_ratio: float = 0.75,
        strategy: MaskStrategy = Random(),
        weight: NoiseWeight = OnTarget(),
        layout: TokenLayout | int = 0,
    ) -> None:
        if not isinstance(process, Gaussian) or process.target != "x_0":
            raise ValueError("masked_denoising needs process gaussian with target x_0")
        self.process, self.weight = process, weight
        self.strategy, self.masking = strategy, Absorbing(layout, Fixed(mask_ratio), strategy=strategy)
        self._times = NoiseTimes(process)

    def __call__(
        self, model: FieldDenoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L, D) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0 = batch.x_0
        t = self._times(len(x_0), rng, x_0.device)
        guide = guide_by(self.masking, model, x_0, batch.cond, rng, progress)
        visible = self.masking.corrupt(x_0, t, self.masking.draw_noise(x_0, rng, guide))
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng))
        cond = batch.cond or Condition(labels_of(None, x_0))
        subset = visible_of(self.masking, visible)
        field = Preconditioned(self.process, model)(x_t, t, replace(cond, visible=visible), subset=subset)
        assert field.subset is not None  # the masked ones
        rows = (field.value.float() - field.subset.gather(x_0)).square().mean((1, 2))
        weight = self.weight(self.process.snr(t), self.process.scalings(t).c_out)
        value = (weight.float() * rows).mean()
        logs = {"squared_error": sum_of(rows)} | by_quarter("squared_error", rows.detach(), t.float(), "noise")
        return Loss(value, {"loss": mean_of(value)} | logs)
