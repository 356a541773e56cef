"""Objectives of networks of images: autoencoders and classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Batch, Loss
from maskgen.core.rng import Rng
from maskgen.core.traits import is_in_training
from maskgen.objectives.base import OBJECTIVES, Objective, ObjectiveTraits


@OBJECTIVES.register("reconstruction")
class Reconstruction(Objective):
    """Squared error of an autoencoder's pixels plus the loss of its quantiser (VQ-VAE, arXiv 1711.00937).

    Args:
        edge_weight: weight of the squared error of horizontal and vertical pixel differences, which keeps edges.
    """

    traits = ObjectiveTraits("none", "images")

    def __init__(self, edge_weight: float = 0.0) -> None:
        if edge_weight < 0:
            raise ValueError(f"edge_weight must be at least 0, got {edge_weight}")
        self.edge_weight = edge_weight

    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:  # noqa: ARG002
        """batch.x_0 (B, C, H, W) in [0, 1]; `model(images)` returns `images` and `penalty`."""
        output = model(batch.x_0)
        error = output.images - batch.x_0
        squared = error.square().mean()
        value = squared + output.penalty
        if self.edge_weight:
            value = value + self.edge_weight * sum(error.diff(dim=axis).square().mean() for axis in (2, 3))
        one = torch.ones_like(squared)
        logs = {"loss": value, "squared_error": squared, "penalty": output.penalty}
        return Loss(value, {key: torch.stack([log.detach(), one]) for key, log in logs.items()})


@OBJECTIVES.register("classification")
class Classification(Objective):
    """Cross-entropy of class labels.

    Args:
        label_smoothing: of the targets.
        shift: images are shifted by up to this many pixels, padded with zeros.
    """

    traits = ObjectiveTraits("none", "images")

    def __init__(self, label_smoothing: float = 0.0, shift: int = 0) -> None:
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        self.label_smoothing = label_smoothing
        self.shift = shift

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:  # noqa: ARG002
        """batch.x_0 (B, C, H, W) in [0, 1] with labels in `batch.cond`; `model(images)` gives (B, n_classes)."""
        if batch.cond is None:
            raise ValueError("classification needs labels, but this data set has none; use data with classes")
        images = shift_images(batch.x_0, self.shift, rng) if self.shift and is_in_training(model) else batch.x_0
        logits, labels = model(images), batch.cond.labels
        value = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        one = torch.ones_like(value)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return Loss(value, {"loss": torch.stack([value.detach(), one]), "accuracy": torch.stack([accuracy, one])})


def shift_images(images: Tensor, by: int, rng: Rng) -> Tensor:
    """Shift each image (C, H, W) of the batch by up to `by` pixels along both axes, padded with zeros."""
    n, _, height, width = images.shape
    padded = F.pad(images, (by, by, by, by))
    offsets = (rng.uniform((n, 2), device=images.device) * (2 * by + 1)).long()
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
