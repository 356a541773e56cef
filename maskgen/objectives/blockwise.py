"""Text from left to right: block diffusion (BD3-LM) and autoregression."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Batch, Categorical, Loss
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout, require_one_stream, vocab_size_of
from maskgen.core.traits import is_in_training, network_of
from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
    draw_times,
    dropped,
    mean_of,
    refuse_dropping,
    require_path,
    require_shares,
    sum_of,
)
from maskgen.objectives.masked import is_right, logs_of
from maskgen.processes import Absorbing, Process


@OBJECTIVES.register("block_tokens")
class BlockTokens(Objective):
    """Bound on nats a token of a block-diffusion model, with independent times of the blocks (BD3-LM, eq. 8).

    Args:
        process: absorbing, count bernoulli.
        interval: (low, high) of the times that are trained; a narrow one lowers the variance (section 5.3). (0, 1) is
            the bound itself, which is what a model in evaluation mode computes. Blocks of one token are at t = 1.
    """

    traits = ObjectiveTraits("masking", "discrete")

    def __init__(self, process: Process, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        if not isinstance(process, Absorbing) or process.count != "bernoulli":
            raise ValueError("block_tokens needs process absorbing with count bernoulli")
        require_one_stream(process.layout, "objective block_tokens")
        if not process.strategy.is_independent:
            raise ValueError("block_tokens needs tokens masked independently: strategy random")
        require_path(process.schedule, "block_tokens")
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"interval must lie in [0, 1], low first, got {interval}")
        self.process = process
        self.interval = interval
        self.baseline = math.log(process.mask_id)

    def __call__(
        self, model: Callable[..., Categorical | Tensor], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0
    ) -> Loss:
        """batch.x_0 (B, L) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0, size = batch.x_0, network_of(model).block_length
        n_rows, length = x_0.shape
        low, high = self.interval if is_in_training(model) else (0.0, 1.0)
        t = draw_times(n_rows * -(-length // size), rng, x_0.device).view(n_rows, -1)
        t = torch.ones_like(t) if size == 1 else low + (high - low) * t
        t = t.repeat_interleave(size, 1)[:, :length]  # (B, L)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng))
        where = x_t == self.process.mask_id
        answer, target = model(x_t, t[:, 0].float(), where=where, clean=x_0), x_0[where]
        logits = categorical_at(answer, where, vocab_size=self.process.mask_id, n=len(target)).logits.float()  # (M, V)
        loss = F.cross_entropy(logits, target, reduction="none")
        weight = torch.ones_like(t) if size == 1 else self.process.schedule.elbo_weight(t)
        value = (weight[where].float() * loss).sum() / x_0.numel()
        ratio = self.process.schedule.mask_ratio(t)[where].float()
        values = {"cross_entropy": loss.detach(), "accuracy": is_right(logits.detach(), target)}
        return Loss(value, {"loss": mean_of(value)} | logs_of(values, ratio))


@OBJECTIVES.register("next_token")
class NextToken(Objective):
    """Cross-entropy of each token given those before it, or given the groups before its own: nats a token, exactly.

    Args:
        layout: of the rows, one stream; or its vocabulary size V. [MASK] = V.
        label_dropout: share of the rows trained without their class.
        input_mask_ratio: share of input tokens replaced by [MASK] while the targets stay (MEAP, arXiv 2502.07490;
            0.15 there). A row has exactly round((L - 1) ratio) of them.
    """

    traits = ObjectiveTraits("none", "discrete")

    def __init__(self, layout: TokenLayout | int, input_mask_ratio: float = 0.0, label_dropout: float = 0.0) -> None:
        require_shares(input_mask_ratio=input_mask_ratio, label_dropout=label_dropout)
        require_one_stream(layout, "objective next_token")
        self.mask_id = vocab_size_of(layout)
        self.input_mask_ratio, self.label_dropout = input_mask_ratio, label_dropout
        self.baseline = math.log(self.mask_id)

    def __call__(self, model: Callable[..., Categorical], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """batch.x_0 (B, L) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0 = batch.x_0
        x_in = self._mask(x_0, rng) if self.input_mask_ratio and is_in_training(model) else x_0
        cond = dropped(batch.cond, self.label_dropout, model, rng)
        t = torch.zeros(len(x_0), device=x_0.device)
        logits = model(x_in, t, cond).logits.float()  # (B, L, V)
        loss = F.cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none")
        value = loss.mean()
        right = sum_of(is_right(logits.detach(), x_0))
        return Loss(value, {"loss": mean_of(value), "cross_entropy": sum_of(loss), "accuracy": right})

    def _mask(self, x_0: Tensor, rng: Rng) -> Tensor:
        n_inputs = x_0.shape[1] - 1  # the last token is only a target
        n_masked = round(n_inputs * self.input_mask_ratio)
        place = rng.permutation(len(x_0), n_inputs, device=x_0.device)[:, :n_masked]
        return x_0.scatter(1, place, self.mask_id)
