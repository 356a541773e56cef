"""Clusters of a moving average's features as targets: CAPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.devices import sum_over_ranks
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.objectives.targets.base import TARGETS, TargetSpec, TokenTarget
from maskgen.objectives.targets.copies import EmaTeacher, require_decay
from maskgen.objectives.targets.source import Source

ROUNDS = 3
"""Of Sinkhorn-Knopp."""


def balanced(scores: Tensor, temperature: float, rounds: int = ROUNDS) -> Tensor:
    """Soft assignments (B, L, K) of rows to clusters that use all clusters equally at every position.

    Sinkhorn-Knopp (SwAV, arXiv 2006.09882) over the rows of all processes, separately at each position, so that a
    cluster cannot stand for a position (CAPI, arXiv 2502.08769, section 3.2). Each row sums to 1.

    Args:
        scores: (B, L, K), similarities.
        temperature: they are divided by.
        rounds: of the iteration.
    """
    q = ((scores - scores.amax(-1, keepdim=True)) / temperature).float().exp()
    for _ in range(rounds):
        q = q / sum_over_ranks(q.sum(0, keepdim=True)).clamp(min=1e-12)  # of a cluster at a position
        q = q / q.sum(-1, keepdim=True).clamp(min=1e-12)  # of a row at a position
    return q


class _Clusters(TokenTarget):
    prototypes: Tensor

    def __init__(self, spec: Clusters, layout: TokenLayout | int) -> None:
        super().__init__()
        self.spec, self.width, self.layout = spec, spec.n, layout
        self._is_learning = False

    def attach(self, network: nn.Module, source: Source | None) -> None:  # noqa: ARG002
        self.teacher = EmaTeacher(network, self.spec.decay)
        assert isinstance(self.layout, TokenLayout)
        device = next(network.parameters()).device
        width = self.teacher.features(torch.zeros(1, self.layout.length, self.layout.width, device=device)).shape[-1]
        with torch.device("cpu"):  # where costs are counted, the default device has no values
            start = Rng.stream("prototypes").normal((self.spec.n, width))
        start = start.to(device)
        self.register_buffer("prototypes", F.normalize(start.float(), dim=-1))

    def update(self, network: nn.Module, progress: float) -> None:
        self.teacher.update(network, progress)
        self._is_learning = True

    @torch.no_grad()
    def forward(self, x_0: Tensor) -> Tensor:
        features = self.teacher.features(x_0).float()
        features = F.normalize(features - features.mean((0, 1), keepdim=True), dim=-1)
        assigned = balanced(features @ self.prototypes.mT, self.spec.target_temperature)
        if self._is_learning:
            self._learn(assigned, features)
        self._is_learning = False
        return assigned

    def _learn(self, assigned: Tensor, features: Tensor) -> None:
        """Move each prototype towards the mean of the features assigned to it, on the sphere."""
        total = sum_over_ranks(torch.einsum("blk,bld->kd", assigned, features))
        self.prototypes.lerp_(F.normalize(total, dim=-1), self.spec.rate)
        self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))

    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        assigned = targets.select(truth)
        return -(assigned * F.log_softmax(value / self.spec.temperature, -1)).sum(-1)

    def logs(self, truth: Tensor) -> Mapping[str, Tensor]:
        share = truth.flatten(0, 1).mean(0)
        used = torch.special.entr(share).sum().exp()
        return {"clusters_used": torch.stack([used, torch.ones_like(used)])}


@TARGETS.register("clusters")
@dataclass(frozen=True)
class Clusters(TargetSpec):
    """Clusters of the features of a moving average of the network, by cross-entropy: CAPI (arXiv 2502.08769).

    Features are centred, assigned to prototypes by Sinkhorn-Knopp at each position, and prototypes follow the mean of
    what is assigned to them; CAPI learns them by gradient, and normalises the input of the predicting layer.
    `clusters_used` is logged: exp of the entropy of their use.

    Args:
        n: number of clusters.
        decay: of the average at the first step; it rises to 1 over the run.
        temperature: logits are divided by; CAPI's is 0.12 for cosines, a plain layer learns its own scale.
        target_temperature: of the assignments.
        rate: of the prototypes' average.
    """

    n: int = 128
    decay: float = 0.99
    temperature: float = 1.0
    target_temperature: float = 0.06
    rate: float = 0.05
    copies_network = True

    def __post_init__(self) -> None:
        require_decay(self.decay)
        if self.n < 2 or not min(self.temperature, self.target_temperature) > 0 or not 0 < self.rate <= 1:
            raise ValueError(
                "n must be at least 2, temperatures positive and rate in (0, 1], got "
                f"{self.n}, {self.temperature}, {self.target_temperature} and {self.rate}"
            )

    def build(self, layout: TokenLayout | int) -> TokenTarget:
        return _Clusters(self, layout)
