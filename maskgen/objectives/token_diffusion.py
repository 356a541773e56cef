"""The loss of a diffusion head on masked tokens: MAR, eMIGM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Loss, over_positions
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training
from maskgen.objectives.base import (
    OBJECTIVES,
    NoiseTimes,
    Objective,
    ObjectiveTraits,
    RatioPer,
    by_quarter,
    draw_times,
    dropped,
    mean_of,
    number_of,
    refuse_dropping,
    require_bound,
    require_shares,
    sum_of,
)
from maskgen.objectives.guides import guide_by
from maskgen.objectives.variance import variational_bound
from maskgen.objectives.weights import WEIGHTS
from maskgen.processes import Absorbing, Process, is_mask
from maskgen.processes.diffusion_head import DiffusionHead


@OBJECTIVES.register("token_diffusion")
class TokenDiffusion(Objective):
    """Squared error of the head's process on masked tokens, and the bound of its variance (MAR, arXiv 2406.11838).

    The head never runs on visible tokens. Each token is noised `repeats` times at independent times: the head is small
    beside the network that computes its condition z.

    Args:
        process: absorbing, of continuous tokens; its schedule is that of mask ratios.
        weight: `uniform`, the mean over the batch's masked tokens (MAR, eMIGM); or `elbo`, the sum weighted with
            -alpha'/(1 - alpha) over all tokens.
        t_min: lower clamp of the masking times (eMIGM, arXiv 2503.07197: 0.2); not of the head's noise.
        repeats: noises of a token.
        label_dropout: share of rows trained without condition, which guidance needs.
        ratio_per: each `sample` has a mask ratio of its own, or a `batch` has one, so that no row is padded (MAR's and
            eMIGM's code).
    """

    traits = ObjectiveTraits("masking", "continuous", has_streams=True)

    def __init__(
        self,
        process: Process,
        weight: Literal["elbo", "uniform"] = "uniform",
        t_min: float = 0.0,
        repeats: int = 4,
        label_dropout: float = 0.1,
        ratio_per: RatioPer = "sample",
    ) -> None:
        if not isinstance(process, Absorbing) or process.mask_id:
            raise ValueError("token_diffusion needs process absorbing and continuous tokens")
        require_bound(process, weight)
        require_shares(label_dropout=label_dropout, t_min=t_min)
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.process, self.strategy = process, process.strategy
        self.weight, self.t_min = weight, t_min
        self.repeats, self.label_dropout = repeats, label_dropout
        self.ratio_per: RatioPer = ratio_per

    def __call__(
        self,
        model: Callable[..., DiffusionHead],
        batch: Batch,
        rng: Rng,
        *,
        keep_ratio: float = 1.0,
        progress: float = 0.0,
    ) -> Loss:
        """batch.x_0 (B, L, D) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0, cond = batch.x_0, batch.cond
        t = draw_times(len(x_0), rng, x_0.device, self.ratio_per).clamp(min=self.t_min)
        guide = guide_by(self.process, model, x_0, cond, rng, progress)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng, guide))
        where = is_mask(x_t, 0)
        is_train = is_in_training(model)
        cond = dropped(cond, self.label_dropout, model, rng)
        head: DiffusionHead = model(x_t, t.float(), cond, subset=self._visible(x_t, rng), where=where)
        errors, logs = self._head_loss(head, x_0, rng)  # (M,)
        n_counted: float | Tensor = where.numel()
        if self.weight != "elbo":
            n_counted = number_of(errors, is_train)
        weight = over_positions(WEIGHTS[self.weight](self.process.schedule, t), where, where.shape).float()
        value = (weight * errors).sum() / n_counted
        ratio = over_positions(where.float().mean(1), where, where.shape)
        return Loss(value, {"loss": mean_of(value)} | logs | by_quarter("token_loss", errors.detach(), ratio, "masked"))

    def _visible(self, x_t: Tensor, rng: Rng) -> TokenSubset | None:
        """None; on the meta device, which has no values to count, as many tokens as are visible on average."""
        if not x_t.is_meta:
            return None
        t = torch.linspace(0, 1, 1001, dtype=torch.float64, device="cpu").clamp(min=self.t_min)
        share = float(self.process.schedule.alpha(t).mean())
        return TokenSubset.draw(len(x_t), x_t.shape[1], max(share, 1e-6), rng, x_t.device)

    def _head_loss(self, head: DiffusionHead, x_0: Tensor, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        """(M,) loss of each masked token, the mean over its noises, and logs; x_0 (B, L, D)."""
        assert head.where is not None
        process, where = head.process, head.where
        clean = self._packed(x_0[:, None].expand(-1, self.repeats, -1, -1), where)
        # Drawn for all tokens, so that the draws of a row do not depend on how rows are shared out.
        shape = (len(x_0), self.repeats, x_0.shape[1])
        noise = self._packed(rng.normal((*shape, x_0.shape[2]), device=x_0.device), where)
        t = self._packed(1 - rng.uniform((*shape, 1), device=x_0.device), where)[:, 0, 0]  # (R M,) in (0, 1]
        t = NoiseTimes(process).nearest(t)
        x_t = process.corrupt(clean, t, noise)
        field = head.field(self.repeats)(x_t, t)
        squared = (field.value.float() - process.output_target(clean, noise, t)).square().mean((1, 2))
        logs, loss = {"squared_error": sum_of(squared)}, squared
        if field.variance is not None:
            bound = variational_bound(process, field, clean, x_t, t)
            logs["variational_bound"], loss = sum_of(bound), squared + bound
        logs |= by_quarter("squared_error", squared.detach(), t.float(), "noise")
        return loss.unflatten(0, (self.repeats, -1)).mean(0), logs

    @staticmethod
    def _packed(values: Tensor, where: Tensor) -> Tensor:
        """(B, R, L, D) -> (R M, 1, D), the M tokens at `where` (B, L), repeat by repeat."""
        return values.transpose(0, 1)[:, where].flatten(0, 1)[:, None]
