"""Training objectives: a model, a batch and an Rng -> a loss."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.predictions import Batch, Denoiser, Loss
from maskgen.processes import Absorbing
from maskgen.registry import Registry
from maskgen.rng import Rng
from maskgen.subset import TokenSubset
from maskgen.weights import WEIGHTS

BUCKETS = 4
"""Mask ratios are logged in quarters."""


class Objective(Protocol):
    """Every log is (2,): a sum and its count, so that means stay exact over steps and ranks."""

    baseline: float | None
    """The loss of knowing nothing, where there is one."""

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss: ...


OBJECTIVES: Registry[Objective] = Registry("objective", derived=("process",))


def draw_times(n: int, rng: Rng, device: torch.device) -> Tensor:
    """(n,) float64 times in (0, 1], one in each of n equal strata, strata permuted over the rows.

    Low-discrepancy times lower the variance of the loss (variational diffusion models, appendix I.1).
    """
    strata = rng.permutation(1, n, device=device)[0]
    return (strata + 1 - rng.uniform((n,), device=device)) / n


@OBJECTIVES.register("masked_tokens")
class MaskedTokens:
    """Cross-entropy on masked tokens only; logits are computed nowhere else.

    Args:
        process: absorbing corruption of the tokens.
        weight: `uniform`, the mean over the batch's masked tokens (MaskGIT, MAGE); or `elbo`, the sum weighted with
            -alpha'/(1 - alpha) over all tokens: an upper bound on nats a token (MD4, MDLM).
        label_smoothing: of the targets.
        label_dropout: share of rows trained without condition, which guidance needs.
    """

    def __init__(
        self,
        process: Absorbing,
        weight: Literal["elbo", "uniform"] = "uniform",
        label_smoothing: float = 0.0,
        label_dropout: float = 0.1,
    ) -> None:
        for name, value in (("label_smoothing", label_smoothing), ("label_dropout", label_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if weight == "elbo" and process.count == "exact":
            # At least one token is masked even as t -> 0, where the weight diverges: the expectation is infinite.
            raise ValueError("weight elbo needs a process with count bernoulli, got exact; use that, or weight uniform")
        self.process = process
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.label_dropout = label_dropout
        self.baseline = math.log(process.mask_id)

    def __call__(self, model: Denoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """batch.x_0 (B, L) -> Loss; with keep_ratio < 1 the dropped tokens neither cost nor count."""
        x_0 = batch.x_0
        t = draw_times(len(x_0), rng, x_0.device)
        x_t = self.process.corrupt(x_0, t, self.process.draw_noise(x_0, rng))
        cond = batch.cond
        if cond is not None and self.label_dropout and getattr(model, "training", True):
            cond = cond.drop(self.label_dropout, rng)
        is_masked = x_t == self.process.mask_id
        where, n_kept, subset = is_masked, x_0.numel(), None
        if keep_ratio < 1:
            subset = TokenSubset.draw(len(x_0), x_0.shape[1], keep_ratio, rng, x_0.device)
            where, n_kept = is_masked & subset.is_kept(), subset.keep.numel()
        logits = model(x_t, t.float(), cond, subset=subset, where=where).logits.float()  # (M, V)
        target = x_0[where]
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
        weight = WEIGHTS[self.weight](self.process.schedule, t)[:, None].expand(where.shape)[where].float()
        n_counted = n_kept if self.weight == "elbo" else max(len(target), 1)
        value = (weight * loss).sum() / n_counted
        ratio = is_masked.float().mean(1, keepdim=True).expand(where.shape)[where]
        return Loss(value, self._logs(value, logits.detach(), target, ratio))

    def _logs(self, value: Tensor, logits: Tensor, target: Tensor, ratio: Tensor) -> dict[str, Tensor]:
        """Loss, and by quarter of the mask ratio the plain cross-entropy and the accuracy of the first choice."""
        one = torch.ones_like(value)
        cross_entropy = F.cross_entropy(logits, target, reduction="none")
        is_right = (logits.argmax(-1) == target).float()
        logs = {
            "loss": torch.stack([value.detach(), one]),
            "cross_entropy": torch.stack([cross_entropy.sum(), one * len(target)]),
            "accuracy": torch.stack([is_right.sum(), one * len(target)]),
        }
        bucket = (ratio * BUCKETS).ceil().long().clamp(1, BUCKETS) - 1
        for name, values in (("cross_entropy", cross_entropy), ("accuracy", is_right)):
            sums = torch.zeros(BUCKETS, device=values.device).index_add_(0, bucket, values)
            counts = torch.bincount(bucket, minlength=BUCKETS).to(sums)
            for index in range(BUCKETS):
                key = f"{name}/masked {100 * index // BUCKETS}-{100 * (index + 1) // BUCKETS}%"
                logs[key] = torch.stack([sums[index], counts[index]])
        return logs


@OBJECTIVES.register("reconstruction")
class Reconstruction:
    """Squared error of an autoencoder's pixels plus what its quantiser adds (VQ-VAE, arXiv 1711.00937).

    Args:
        edge_weight: weight of the squared error of horizontal and vertical pixel differences, which keeps edges.
    """

    baseline = None

    def __init__(self, edge_weight: float = 0.0) -> None:
        if edge_weight < 0:
            raise ValueError(f"edge_weight must be at least 0, got {edge_weight}")
        self.edge_weight = edge_weight

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:  # noqa: ARG002
        """batch.x_0 (B, C, H, W) in [0, 1]; `model(images)` answers with `images` and `penalty`."""
        answer = model(batch.x_0)
        error = answer.images - batch.x_0
        squared = error.square().mean()
        value = squared + answer.penalty
        if self.edge_weight:
            value = value + self.edge_weight * sum(error.diff(dim=axis).square().mean() for axis in (2, 3))
        one = torch.ones_like(squared)
        logs = {"loss": value, "squared_error": squared, "penalty": answer.penalty}
        return Loss(value, {key: torch.stack([log.detach(), one]) for key, log in logs.items()})


@OBJECTIVES.register("classification")
class Classification:
    """Cross-entropy of class labels.

    Args:
        label_smoothing: of the targets.
        shift: images are moved by up to this many pixels, zeros moving in.
    """

    baseline = None

    def __init__(self, label_smoothing: float = 0.0, shift: int = 0) -> None:
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        self.label_smoothing = label_smoothing
        self.shift = shift

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:  # noqa: ARG002
        """batch.x_0 (B, C, H, W) in [0, 1] with labels in `batch.cond`; `model(images)` gives (B, n_classes)."""
        if batch.cond is None:
            raise ValueError("classification needs labels, and this data set has none")
        images = shift_images(batch.x_0, self.shift, rng) if self.shift and model.training else batch.x_0
        logits, labels = model(images), batch.cond.labels
        value = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        one = torch.ones_like(value)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return Loss(value, {"loss": torch.stack([value.detach(), one]), "accuracy": torch.stack([accuracy, one])})


def shift_images(images: Tensor, by: int, rng: Rng) -> Tensor:
    """Each image (C, H, W) of the batch moved by up to `by` pixels along both axes, zeros moving in."""
    n, _, height, width = images.shape
    padded = F.pad(images, (by, by, by, by))
    offsets = (rng.uniform((n, 2), device=images.device) * (2 * by + 1)).long()
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
