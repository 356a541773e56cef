"""Cross-entropy on masked tokens: MaskGIT, MAGE, MD4, MDLM."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from maskgen.objectives.base import OBJECTIVES, by_quarter, draw_times, guide_by, mean_of, number_of, sum_of
from maskgen.objectives.difficulty import with_difficulty
from maskgen.predictions import Batch, Denoiser, Loss
from maskgen.processes import Absorbing, Process
from maskgen.rng import Rng
from maskgen.schedules import Fixed
from maskgen.subset import TokenSubset
from maskgen.weights import WEIGHTS, elbo_of_steps


@OBJECTIVES.register("masked_tokens")
class MaskedTokens:
    """Cross-entropy on masked tokens only; logits are computed nowhere else.

    A network that expects losses (`has_difficulty`) learns that too, whatever the strategy: `relative_loss` is added.

    Args:
        process: absorbing corruption of the tokens.
        weight: `uniform`, the mean over the batch's masked tokens (MaskGIT, MAGE); or `elbo`, the sum weighted with
            -alpha'/(1 - alpha) over all tokens: an upper bound on nats a token (MD4, MDLM).
        steps: T of the discrete-time bound, for weight `elbo`; 0 is continuous time.
        label_smoothing: of the targets.
        label_dropout: share of rows trained without condition, which guidance needs.
    """

    def __init__(
        self,
        process: Process,
        weight: Literal["elbo", "uniform"] = "uniform",
        steps: int = 0,
        label_smoothing: float = 0.0,
        label_dropout: float = 0.1,
    ) -> None:
        for name, value in (("label_smoothing", label_smoothing), ("label_dropout", label_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if not isinstance(process, Absorbing):
            raise ValueError("masked_tokens needs process absorbing; the learned one has objective state_dependent")
        if not process.mask_id:
            raise ValueError("masked_tokens is of tokens that are numbers; vectors are learned by another objective")
        if weight == "elbo" and process.count == "exact":
            # At least one token is masked even as t -> 0, where the weight diverges: the expectation is infinite.
            raise ValueError("weight elbo needs a process with count bernoulli, got exact; use that, or weight uniform")
        if weight == "elbo" and isinstance(process.schedule, Fixed):
            raise ValueError(
                "weight elbo of schedule fixed is 0 at all times; take weight uniform, or another schedule"
            )
        if weight == "elbo" and not process.strategy.is_independent:
            raise ValueError("weight elbo needs tokens masked independently: strategy random; or take weight uniform")
        if steps < 0 or (steps and weight != "elbo"):
            raise ValueError(f"steps (0 = continuous time) goes with weight elbo and is not negative, got {steps}")
        self.process, self.strategy = process, process.strategy
        self.weight = weight
        self.steps = steps
        self.label_smoothing = label_smoothing
        self.label_dropout = label_dropout
        self.baseline = math.log(process.mask_id)

    def __call__(
        self, model: Denoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L) -> Loss; with keep_ratio < 1 the dropped tokens neither cost nor count."""
        x_0 = batch.x_0
        t = draw_times(len(x_0), rng, x_0.device)
        if self.steps:
            t = (t * self.steps).ceil() / self.steps
        guide = guide_by(self.strategy, model, x_0, batch.cond, progress)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng, guide))
        cond = batch.cond
        if cond is not None and self.label_dropout and getattr(model, "training", True):
            cond = cond.drop(self.label_dropout, rng)
        is_masked = x_t == self.process.mask_id
        where, n_kept, subset = is_masked, x_0.numel(), None
        if keep_ratio < 1:
            subset = TokenSubset.draw(len(x_0), x_0.shape[1], keep_ratio, rng, x_0.device)
            where, n_kept = is_masked & subset.is_kept(), subset.keep.numel()
        more: dict[str, Any] = {} if batch.documents is None else {"documents": batch.documents}
        predicted = model(x_t, t.float(), cond, subset=subset, where=where, **more)
        logits, target = predicted.logits.float(), x_0[where]  # (M, V), (M,)
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
        weight = self._weight(t)[:, None].expand(where.shape)[where].float()
        n_counted: float | Tensor = n_kept
        if self.weight != "elbo":
            n_counted = number_of(target, getattr(model, "training", True))
        value = (weight * loss).sum() / n_counted
        plain = loss if not self.label_smoothing else F.cross_entropy(logits.detach(), target, reduction="none")
        ratio = is_masked.float().mean(1, keepdim=True).expand(where.shape)[where]
        logs = {"loss": mean_of(value)} | logs_of(plain.detach(), logits.detach(), target, ratio)
        return with_difficulty(Loss(value, logs), predicted.difficulty, plain, where)

    def _weight(self, t: Tensor) -> Tensor:
        """(B,)"""
        if self.steps:
            return elbo_of_steps(self.process.schedule, t, self.steps)
        return WEIGHTS[self.weight](self.process.schedule, t)


def logs_of(cross_entropy: Tensor, logits: Tensor, target: Tensor, ratio: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and accuracy of the first choice, in all and by quarter of the mask ratio.

    All are of the M predicted positions: `cross_entropy`, `target` and `ratio` (M,), `logits` (M, V).
    """
    is_right = (logits.argmax(-1) == target).float()
    values = {"cross_entropy": cross_entropy, "accuracy": is_right}
    logs = {name: sum_of(value) for name, value in values.items()}
    for name, value in values.items():
        logs |= by_quarter(name, value, ratio, "masked")
    return logs
