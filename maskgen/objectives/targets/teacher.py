"""Features of a teacher as targets: MaskDistill and dBOT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import network_of
from maskgen.objectives.targets.base import (
    OWN_WIDTH,
    TARGETS,
    TargetSpec,
    TokenTarget,
    feature_error,
    layer_normalised,
)
from maskgen.objectives.targets.copies import featured, follow, frozen_copy
from maskgen.objectives.targets.source import Source
from maskgen.objectives.targets.sourced import SourcedTarget


class _Features(TokenTarget):
    """Normalised features of a frozen network, by smooth L1."""

    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        return feature_error(value, truth, targets)


class _Teacher(SourcedTarget, _Features):
    takes_ids = False

    def forward(self, x_0: Tensor) -> Tensor:
        return layer_normalised(self.output(x_0))


@TARGETS.register("teacher")
@dataclass(frozen=True)
class Teacher(TargetSpec):
    """Features of a trained network, layer-normalised, by smooth L1: MaskDistill (arXiv 2210.10615).

    dBOT (arXiv 2209.03917) restarts the student for every stage: a run per stage, the teacher that of the one before.

    Args:
        checkpoint: of an image generator whose network has features, on the same grid of patches.
    """

    checkpoint: str
    needs_pixels = True

    def build(self, layout: TokenLayout | int) -> TokenTarget:
        return _Teacher(layout)


class _Renewed(_Features):
    """Features of the network as it was at the beginning of its stage."""

    width = OWN_WIDTH
    stage: Tensor

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.stages = stages
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self._stage: int | None = None

    def attach(self, network: nn.Module, source: Source | None) -> None:  # noqa: ARG002
        self.twin = frozen_copy(network)

    def update(self, network: nn.Module, progress: float) -> None:
        if self.stage.is_meta:
            return
        if self._stage is None:  # of a resumed run
            self._stage = int(self.stage)
        stage = min(int(progress * self.stages + 1e-9), self.stages - 1)
        if stage != self._stage:
            follow(self.twin, network_of(network), 0.0)
            self.stage.fill_(stage)
            self._stage = stage

    @torch.no_grad()
    def forward(self, x_0: Tensor) -> Tensor:
        return layer_normalised(featured(self.twin).features(x_0))


@TARGETS.register("bootstrap")
@dataclass(frozen=True)
class Bootstrap(TargetSpec):
    """Features of the network's own earlier state, first its random start: dBOT (arXiv 2209.03917) in one run.

    The run has stages of equal length, and the teacher of each is the student at its beginning. The student goes on;
    dBOT restarts it, which is a run per stage with target `teacher`.

    Args:
        stages: 1 distils the random start alone.
    """

    stages: int = 3
    copies_network = True

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")

    def build(self, layout: TokenLayout | int) -> TokenTarget:  # noqa: ARG002
        return _Renewed(self.stages)
