"""Cross-entropy on masked tokens: MaskGIT, MAGE and its contrastive term, MD4, MDLM; rows of several streams."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.check import CheckContext
from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Batch, Categorical, Denoiser, Loss, over_positions
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training, traits_of
from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
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
from maskgen.objectives.masked_rows import MaskedRows, entropy_where_right, with_complement, with_random_lengths
from maskgen.objectives.streams import StreamTerms
from maskgen.objectives.weights import WEIGHTS, elbo_of_steps
from maskgen.processes import Absorbing, Process, put_masks
from maskgen.strategies import Guide


@OBJECTIVES.register("masked_tokens")
class MaskedTokens(Objective):
    """Cross-entropy on masked tokens only; logits are computed nowhere else.

    A network that predicts losses (`has_difficulty`) learns that too, whatever the strategy: `relative_loss` is added.
    In rows of several streams the cross-entropy of a position is over the ids of its stream.

    Args:
        process: absorbing corruption of the tokens.
        weight: `uniform`, the mean over the batch's masked tokens (MaskGIT, MAGE); or `elbo`, the sum weighted with
            -alpha'/(1 - alpha) over all tokens: an upper bound on nats a token (MD4, MDLM).
        steps: T of the discrete-time bound, for weight `elbo`; 0 is continuous time.
        label_smoothing: of the targets.
        label_dropout: share of rows trained without condition, which guidance needs.
        ratio_per: each `sample` has a mask ratio of its own, a `batch` has one (as MAGE's code draws it), or each
            `stream` of each sample: the network is then given times (B, S).
        contrastive: MAGE-C's term on two views of each image, from networks and data that have them.
        stream_weights: weight of the loss of a stream's tokens, by name; 1 if not given. With weight `elbo` the loss is
            a bound only without.
        stream_dropout: share of the training rows in which a stream is masked wholly and not predicted, by name, which
            guidance by that stream needs.
        sampling_eps: times are in (sampling_eps, 1] (MDLM's code: 1e-3); the bound leaves out what lies below.
        complementary: train on each row twice, the second time with exactly the other tokens masked (LLaDA 2.0).
        confidence: weight of CAP, the entropy of predictions that are right already (LLaDA 2.0).
        random_length: share of the training rows that are cut to a random length (LLaDA: 0.01). What is cut off is a
            document of its own, which is not predicted.
    """

    traits = ObjectiveTraits(
        "masking", "discrete", drops_tokens=True, has_streams=True, takes_documents=True, takes_answers=True
    )
    contrastive: Contrastive | None

    def __init__(
        self,
        process: Process,
        weight: Literal["elbo", "uniform"] = "uniform",
        steps: int = 0,
        label_smoothing: float = 0.0,
        label_dropout: float = 0.1,
        ratio_per: Literal["sample", "batch", "stream"] = "sample",
        contrastive: Contrastive | None = None,
        stream_weights: dict[str, float] | None = None,
        stream_dropout: dict[str, float] | None = None,
        sampling_eps: float = 0.0,
        complementary: bool = False,
        confidence: float = 0.0,
        random_length: float = 0.0,
    ) -> None:
        require_shares(label_smoothing=label_smoothing, label_dropout=label_dropout, sampling_eps=sampling_eps)
        require_shares(random_length=random_length)
        if complementary and (steps or contrastive is not None):
            raise ValueError("complementary: masks need steps 0 and no contrastive term; leave it out")
        if confidence < 0:
            raise ValueError(f"confidence must be at least 0, got {confidence}")
        if not isinstance(process, Absorbing):
            raise ValueError("masked_tokens needs process absorbing; state_dependent has an objective of that name")
        if not process.mask_id:
            raise ValueError("masked_tokens needs discrete tokens; use masked_regression or token_diffusion")
        require_bound(process, weight)
        if steps < 0 or (steps and weight != "elbo"):
            raise ValueError(f"steps must be at least 0 and needs weight elbo (0 = continuous time), got {steps}")
        self.process, self.strategy = process, process.strategy
        self.weight, self.steps, self.sampling_eps = weight, steps, sampling_eps
        self.label_smoothing, self.label_dropout = label_smoothing, label_dropout
        self.ratio_per, self.contrastive = ratio_per, contrastive
        self.complementary, self.confidence, self.random_length = complementary, confidence, random_length
        self.streams = StreamTerms(process.layout, stream_weights, stream_dropout)
        self.baseline = self.streams.baseline(process.mask_id)

    def check(self, context: CheckContext) -> None:
        """Check what cut rows, complements and answers need of the other parts."""
        traits = context.traits
        takes_cuts = context.kind == "text" and traits.takes_documents and context.keep_ratio == 1
        if self.random_length and (context.has_answers or not takes_cuts):
            raise ValueError(
                "objective.random_length: is for text without answers, a network that takes documents and "
                "train.keep_ratio 1; use 0"
            )
        if self.complementary and context.keep_ratio < 1:
            raise ValueError(f"objective.complementary: needs train.keep_ratio 1, got {context.keep_ratio}")
        if context.has_answers and not (self.process.count == "bernoulli" and self.process.strategy.is_independent):
            raise ValueError(
                "process.count: answers are masked without their prompts, which needs count bernoulli and strategy "
                f"random; got count {self.process.count}"
            )

    def __call__(
        self, model: Denoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0, progress: float = 0.0
    ) -> Loss:
        """batch.x_0 (B, L) -> Loss; with keep_ratio < 1 dropped tokens are not computed and not counted.

        A network that predicts dropped tokens (`drops_masked`) drops masked ones only, and these count. If rows are a
        prompt and an answer, the loss with weight `elbo` is the mean over rows of nats a token of the answer.
        """
        is_training = is_in_training(model)
        draw = self._draw(model, batch, rng, guide_by(self.process, model, batch.x_0, batch.cond, rng, progress))
        if self.random_length and is_training:
            draw, batch = with_random_lengths(draw, batch, self.random_length, rng)
        given, batch = batch, replace(batch, cond=dropped(batch.cond, self.label_dropout, model, rng))
        if self.complementary and is_training:
            draw, batch = with_complement(draw, batch, self.process, is_bound=self.weight == "elbo")
        where, n_counted, subset = self._kept(model, draw, keep_ratio, rng)
        more: dict[str, object] = {} if batch.documents is None else {"documents": batch.documents}
        if self.contrastive is not None and batch.view is not None:
            of_view = rng.fork("view")
            guide = guide_by(self.process, model, batch.view, given.cond, of_view, progress)
            more["view"] = self._masked_view(batch.view, of_view, keep_ratio, guide)
        answer = model(draw.x_t, draw.t.float(), batch.cond, subset=subset, where=where, **more)
        target, weight = batch.x_0[where], self.streams.weighted(draw.weight, where)
        if batch.is_answer is not None and self.weight == "elbo":
            weight = weight / over_positions(batch.is_answer.sum(1), where, where.shape)
            n_counted = len(where)
        elif self.weight != "elbo":
            n_counted = number_of(target, is_training)
        prediction = categorical_at(answer, where, vocab_size=self.process.mask_id, n=len(target))
        ratio = over_positions(draw.is_masked.float().mean(1), where, where.shape)
        return self._loss(prediction, _Terms(target, weight.float(), n_counted, ratio, where), is_training)

    def _loss(self, prediction: Categorical, terms: _Terms, is_training: bool) -> Loss:
        """The loss of the predictions of M masked tokens."""
        target, where = terms.target, terms.where
        logits = self.streams.limited(prediction.logits.float(), where)  # (M, V)
        loss = self.streams.cross_entropy(logits, target, self.label_smoothing)  # (M,)
        plain = self.streams.cross_entropy(logits.detach(), target) if self.label_smoothing else loss
        value = (terms.weight * loss).sum() / terms.n_counted
        values = {"cross_entropy": plain.detach(), "accuracy": is_right(logits.detach(), target)}
        logs = logs_of(values, terms.ratio) | self.streams.logs(values, where)
        if self.confidence and is_training:
            entropy = entropy_where_right(logits, values["accuracy"], is_training)
            logs["entropy_where_right"] = mean_of(entropy)
            value = value + self.confidence * entropy
        if prediction.vectors is not None and self.contrastive is not None:
            term = self.contrastive(prediction.vectors)
            logs["contrastive"] = mean_of(term)
            value = value + self.contrastive.weight * term
        return with_difficulty(Loss(value, {"loss": mean_of(value)} | logs), prediction.difficulty, plain, where)

    def _draw(self, model: object, batch: Batch, rng: Rng, guide: Guide | None) -> MaskedRows:
        """The rows x_0 (B, L), masked; in training, streams are dropped. Prompts are never masked."""
        x_0, is_answer = batch.x_0, batch.is_answer
        t, x_t, noise = self._corrupt(x_0, rng, guide)
        if is_answer is not None:
            x_t = torch.where(is_answer, x_t, x_0)
        is_dropped = self.streams.dropped(x_0, rng) if is_in_training(model) else None
        if is_dropped is not None:
            x_t = put_masks(x_t, is_dropped, self.process.mask_id)
        is_counted = is_answer if is_dropped is None else ~is_dropped
        return MaskedRows(t, self._weight(t), x_t, noise, x_t == self.process.mask_id, is_counted)

    def _corrupt(self, x_0: Tensor, rng: Rng, guide: Guide | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,) or (B, S), tokens with [MASK] (B, L), and the noise (B, L) that masked them."""
        if self.ratio_per == "stream":
            n_streams = 1 if self.streams.layout is None else len(self.streams.layout.streams)
            t = self.streams.times(draw_times(len(x_0) * n_streams, rng, x_0.device))
        else:
            t = draw_times(len(x_0), rng, x_0.device, self.ratio_per)
        if self.sampling_eps:
            t = self.sampling_eps + (1 - self.sampling_eps) * t
        if self.steps:
            t = (t * self.steps).ceil() / self.steps
        noise = self.process.draw_noise(x_0, rng, guide)
        return t, self.process.corrupt(x_0, t, noise), noise

    def _kept(
        self, model: object, draw: MaskedRows, keep_ratio: float, rng: Rng
    ) -> tuple[Tensor, int | Tensor, TokenSubset | None]:
        """Predicted positions (B, L), the number of tokens that `elbo` is a mean over, and the computed ones."""
        subset, where, is_counted = None, draw.is_masked, draw.is_counted
        if keep_ratio < 1 and traits_of(model).drops_masked:
            subset = drop_masked(draw.is_masked, draw.noise, keep_ratio)
        elif keep_ratio < 1:
            subset = TokenSubset.draw(len(where), where.shape[1], keep_ratio, rng, where.device)
            if is_counted is None:
                return where & subset.is_kept(), subset.keep.numel(), subset
            is_counted = is_counted & subset.is_kept()
        if is_counted is None:
            return where, where.numel(), subset
        return where & is_counted, is_counted.sum(), subset

    def _masked_view(
        self, view: Tensor, rng: Rng, keep_ratio: float, guide: Guide | None
    ) -> tuple[Tensor, TokenSubset | None]:
        """Another view (B, L) with masks of its own, and its kept tokens."""
        _, x_t, noise = self._corrupt(view, rng, guide)
        return x_t, None if keep_ratio == 1 else drop_masked(x_t == self.process.mask_id, noise, keep_ratio)

    def _weight(self, t: Tensor) -> Tensor:
        """Weights of the shape of the times t."""
        if self.steps:
            return elbo_of_steps(self.process.schedule, t, self.steps)
        return WEIGHTS[self.weight](self.process.schedule, t)


@dataclass(frozen=True)
class _Terms:
    """Of M predicted tokens: targets, weights and mask ratios of their rows (M,), their places (B, L); the divisor."""

    target: Tensor
    weight: Tensor
    n_counted: int | Tensor
    ratio: Tensor
    where: Tensor


def drop_masked(is_masked: Tensor, noise: Tensor, keep_ratio: float) -> TokenSubset:
    """All but ceil(L (1 - keep_ratio)) tokens a row: those masked first are dropped, and never one that is visible.

    A row with fewer masked tokens keeps more. `is_masked` (B, L) bool, `noise` (B, L) that masked them.
    """
    length = is_masked.shape[1]
    n_drop = min(math.ceil(length * (1 - keep_ratio) - 1e-9), length - 1)  # 10 * (1 - 0.7) is above 3 by rounding
    order = noise.masked_fill(~is_masked, torch.inf).argsort(dim=1, stable=True)
    is_kept = ~is_masked | (order.argsort(1) >= n_drop)
    return TokenSubset.of(is_kept, length - n_drop if is_kept.is_meta else None)  # meta: no values to count


def is_right(logits: Tensor, target: Tensor) -> Tensor:
    """(M,) 1.0 where the most likely token of logits (M, V) is the target (M,), else 0.0."""
    return (logits.argmax(-1) == target).float()


def logs_of(values: dict[str, Tensor], ratio: Tensor) -> dict[str, Tensor]:
    """The logs of values (M,) at predicted positions, in all and by quarter of the mask ratio (M,)."""
    logs = {name: sum_of(value) for name, value in values.items()}
    for name, value in values.items():
        logs |= by_quarter(name, value, ratio, "masked")
    return logs
