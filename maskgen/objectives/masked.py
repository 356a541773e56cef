"""Cross-entropy on masked tokens: MaskGIT, MAGE and its contrastive term, MD4, MDLM."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Batch, Denoiser, Loss, over_positions
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training, traits_of
from maskgen.objectives.base import (
    OBJECTIVES,
    RatioPer,
    by_quarter,
    draw_times,
    dropped,
    mean_of,
    number_of,
    require_bound,
    require_shares,
    sum_of,
)
from maskgen.objectives.contrastive import Contrastive
from maskgen.objectives.difficulty import with_difficulty
from maskgen.objectives.guides import guide_by
from maskgen.objectives.weights import WEIGHTS, elbo_of_steps
from maskgen.processes import Absorbing, Process
from maskgen.strategies import Guide


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
        ratio_per: each `sample` has a mask ratio of its own, or a `batch` has one (as MAGE's code draws it).
        contrastive: MAGE-C's term on two views of each image, from networks and data that have them.
    """

    def __init__(
        self,
        process: Process,
        weight: Literal["elbo", "uniform"] = "uniform",
        steps: int = 0,
        label_smoothing: float = 0.0,
        label_dropout: float = 0.1,
        ratio_per: RatioPer = "sample",
        contrastive: Contrastive | None = None,
    ) -> None:
        require_shares(label_smoothing=label_smoothing, label_dropout=label_dropout)
        if not isinstance(process, Absorbing):
            raise ValueError("masked_tokens needs process absorbing; the learned one has objective state_dependent")
        if not process.mask_id:
            raise ValueError("masked_tokens is of tokens that are numbers; vectors are learned by another objective")
        require_bound(process, weight)
        if steps < 0 or (steps and weight != "elbo"):
            raise ValueError(f"steps (0 = continuous time) goes with weight elbo and is not negative, got {steps}")
        self.process, self.strategy = process, process.strategy
        self.weight = weight
        self.steps = steps
        self.label_smoothing = label_smoothing
        self.label_dropout = label_dropout
        self.ratio_per: RatioPer = ratio_per
        self.contrastive = contrastive
        self.baseline = math.log(process.mask_id)

    def __call__(
        self, model: Denoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L) -> Loss; with keep_ratio < 1 the dropped tokens neither cost nor count.

        A network that predicts dropped tokens (`drops_masked`) has masked ones dropped only, and these count.
        """
        x_0, cond, is_training = batch.x_0, batch.cond, is_in_training(model)
        drops_masked = traits_of(model).drops_masked
        t, x_t, noise = self._corrupt(x_0, rng, guide_by(self.process, model, x_0, batch.cond, rng, progress))
        cond = dropped(cond, self.label_dropout, model, rng)
        is_masked = x_t == self.process.mask_id
        where, n_kept, subset = is_masked, x_0.numel(), None
        if keep_ratio < 1 and drops_masked:
            subset = drop_masked(is_masked, noise, keep_ratio)
        elif keep_ratio < 1:
            subset = TokenSubset.draw(len(x_0), x_0.shape[1], keep_ratio, rng, x_0.device)
            where, n_kept = is_masked & subset.is_kept(), subset.keep.numel()
        more: dict[str, Any] = {} if batch.documents is None else {"documents": batch.documents}
        if self.contrastive is not None and batch.view is not None:
            of_view = rng.fork("view")
            told = guide_by(self.process, model, batch.view, batch.cond, of_view, progress)
            more["view"] = self._masked_view(batch.view, of_view, keep_ratio, told)
        answer, target = model(x_t, t.float(), cond, subset=subset, where=where, **more), x_0[where]
        prediction = categorical_at(answer, where, vocab_size=self.process.mask_id, n=len(target))
        logits = prediction.logits.float()  # (M, V)
        weight = over_positions(self._weight(t), where, where.shape).float()
        value, plain = self._cross_entropy(logits, target, weight, n_kept, is_training)
        ratio = over_positions(is_masked.float().mean(1), where, where.shape)
        logs = logs_of(plain.detach(), logits.detach(), target, ratio)
        if prediction.vectors is not None and self.contrastive is not None:
            term = self.contrastive(prediction.vectors)
            logs["contrastive"] = mean_of(term)
            value = value + self.contrastive.weight * term
        return with_difficulty(Loss(value, {"loss": mean_of(value)} | logs), prediction.difficulty, plain, where)

    def _corrupt(self, x_0: Tensor, rng: Rng, guide: Guide | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,), tokens with [MASK] (B, L), and the noise (B, L) that says which are masked first."""
        t = draw_times(len(x_0), rng, x_0.device, self.ratio_per)
        if self.steps:
            t = (t * self.steps).ceil() / self.steps
        noise = self.process.draw_noise(x_0, rng, guide)
        return t, self.process.corrupt(x_0, t, noise), noise

    def _masked_view(
        self, view: Tensor, rng: Rng, keep_ratio: float, guide: Guide | None
    ) -> tuple[Tensor, TokenSubset | None]:
        """Another view (B, L), masked by itself, and its kept tokens."""
        _, x_t, noise = self._corrupt(view, rng, guide)
        return x_t, None if keep_ratio == 1 else drop_masked(x_t == self.process.mask_id, noise, keep_ratio)

    def _cross_entropy(
        self, logits: Tensor, target: Tensor, weight: Tensor, n_kept: int, is_training: bool
    ) -> tuple[Tensor, Tensor]:
        """What is minimised, and the plain cross-entropy (M,), of logits (M, V) of masked tokens."""
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
        n_counted: float | Tensor = n_kept
        if self.weight != "elbo":
            n_counted = number_of(target, is_training)
        plain = loss if not self.label_smoothing else F.cross_entropy(logits.detach(), target, reduction="none")
        return (weight * loss).sum() / n_counted, plain

    def _weight(self, t: Tensor) -> Tensor:
        """(B,)"""
        if self.steps:
            return elbo_of_steps(self.process.schedule, t, self.steps)
        return WEIGHTS[self.weight](self.process.schedule, t)


def drop_masked(is_masked: Tensor, noise: Tensor, keep_ratio: float) -> TokenSubset:
    """All but ceil(L (1 - keep_ratio)) tokens a row: those masked first are dropped, and never one that is visible.

    A row with fewer masked tokens keeps more. `is_masked` (B, L) bool, `noise` (B, L) that masked them.
    """
    length = is_masked.shape[1]
    n_drop = min(math.ceil(length * (1 - keep_ratio) - 1e-9), length - 1)  # 10 * (1 - 0.7) is above 3 by rounding
    order = noise.masked_fill(~is_masked, torch.inf).argsort(dim=1, stable=True)
    is_kept = ~is_masked | (order.argsort(1) >= n_drop)
    return TokenSubset.of(is_kept, length - n_drop if is_kept.is_meta else None)  # meta: no values to count


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
