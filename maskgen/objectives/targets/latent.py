"""Features of a moving average of the network as targets: Latent MIM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.objectives.targets.base import OWN_WIDTH, TARGETS, TargetSpec, TokenTarget, feature_error, layer_normalised
from maskgen.objectives.targets.copies import EmaTeacher, require_decay
from maskgen.objectives.targets.source import Source

Comparison = Literal["patches", "smooth_l1"]


class _Latents(TokenTarget):
    width = OWN_WIDTH

    def __init__(self, decay: float, loss: Comparison, temperature: float) -> None:
        super().__init__()
        self.decay, self.loss, self.temperature = decay, loss, temperature

    def attach(self, network: nn.Module, source: Source | None) -> None:  # noqa: ARG002
        self.teacher = EmaTeacher(network, self.decay)

    def update(self, network: nn.Module, progress: float) -> None:
        self.teacher.update(network, progress)

    def forward(self, x_0: Tensor) -> Tensor:
        return layer_normalised(self.teacher.features(x_0))

    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        if self.loss == "smooth_l1":
            return feature_error(value, truth, targets)
        return patch_discrimination(value, targets.gather(truth), targets.valid, self.temperature)

    def logs(self, truth: Tensor) -> Mapping[str, Tensor]:
        return {"target_deviation": spread(truth)}


def patch_discrimination(value: Tensor, truth: Tensor, valid: Tensor | None, temperature: float) -> Tensor:
    """-log of the softmax that picks each prediction's own target among the image's: InfoNCE within an image.

    Args:
        value: (M, W), packed predictions.
        truth: (B, K, W), their targets.
        valid: (B, K) bool, False for padding; None without.
        temperature: of cosine similarities.

    Returns:
        (M,). A collapse to one vector costs log K, so it is no minimum (Latent MIM, arXiv 2407.15837, section 3.2).
    """
    if valid is None:
        predicted = value.unflatten(0, truth.shape[:2])
    else:
        predicted = torch.zeros_like(truth, dtype=value.dtype).masked_scatter(valid[..., None], value)
    scores = F.normalize(predicted, dim=-1) @ F.normalize(truth.to(value.dtype), dim=-1).mT / temperature  # (B, K, K)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None], -1e9)
    error = scores.logsumexp(-1) - scores.diagonal(dim1=1, dim2=2)
    return error.flatten() if valid is None else error[valid]


def spread(truth: Tensor) -> Tensor:
    """Log of the deviation of targets (B, L, W) over images and places: 0 after a collapse, about 1 at best."""
    value = truth.float().flatten(0, 1).var(0, correction=0).mean().sqrt()
    return torch.stack([value.detach(), torch.ones_like(value)])


@TARGETS.register("latent")
@dataclass(frozen=True)
class Latent(TargetSpec):
    """Features of a moving average of the network, layer-normalised: Latent MIM (arXiv 2407.15837).

    The guards against collapse: the average, no gradient through it, and patch discrimination. `target_deviation` is
    logged, which a collapse takes to 0.

    Args:
        decay: of the average at the first step; it rises to 1 over the run.
        loss: `patches`, which of the image's masked patches a prediction is of; or `smooth_l1`, which can collapse.
        temperature: of `patches`.
    """

    decay: float = 0.99
    loss: Comparison = "patches"
    temperature: float = 0.2
    copies_network = True

    def __post_init__(self) -> None:
        require_decay(self.decay)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def build(self, layout: TokenLayout | int) -> TokenTarget:  # noqa: ARG002
        return _Latents(self.decay, self.loss, self.temperature)
