"""Targets that a checkpoint computes from the images behind the tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from maskgen.core.streams import TokenLayout
from maskgen.objectives.targets.base import TokenTarget, grid_of, images_of
from maskgen.objectives.targets.source import Source


class SourcedTarget(TokenTarget):
    """The output of a frozen network or tokenizer for x_0.

    Attributes:
        takes_ids: whether the source must give ids, not features.
    """

    takes_ids: ClassVar[bool]
    source: Source | None

    def __init__(self, layout: TokenLayout | int) -> None:
        super().__init__()
        self.grid, self.source = grid_of(layout), None

    def attach(self, network: nn.Module, source: Source | None) -> None:
        if source is None:
            return
        if source.has_ids != self.takes_ids:
            needed = "a trained tokenizer" if self.takes_ids else "an image generator with features"
            raise ValueError(f"objective.target.checkpoint must be of {needed}")
        if tuple(source.grid) != tuple(self.grid):
            raise ValueError(
                f"objective.target.checkpoint has a grid {tuple(source.grid)} of tokens, the network one of "
                f"{tuple(self.grid)}; choose a tokenizer.size that gives both the same"
            )
        self.source, self.width = source.to(next(network.parameters()).device), source.width

    @torch.no_grad()
    def output(self, x_0: Tensor) -> Tensor:
        """(B, L, W) or (B, L) of the source; on the meta device, where costs are counted, it is not run."""
        assert self.source is not None, "attached before training"
        if x_0.is_meta:
            shape = x_0.shape[:2] if self.takes_ids else (*x_0.shape[:2], self.width)
            return torch.zeros(shape, dtype=torch.int64 if self.takes_ids else x_0.dtype, device=x_0.device)
        found: Tensor = self.source(images_of(x_0, self.grid))
        return found
