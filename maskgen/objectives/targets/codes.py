"""Ids of a trained tokenizer as targets: BEiT and PeCo."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.objectives.targets.base import TARGETS, TargetSpec, TokenTarget
from maskgen.objectives.targets.sourced import SourcedTarget


class _Codes(SourcedTarget):
    takes_ids = True

    def forward(self, x_0: Tensor) -> Tensor:
        return self.output(x_0)

    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        return F.cross_entropy(value, targets.select(truth), reduction="none")


@TARGETS.register("codes")
@dataclass(frozen=True)
class Codes(TargetSpec):
    """Ids of a trained tokenizer on the same grid, by cross-entropy: BEiT (arXiv 2106.08254).

    PeCo (arXiv 2111.12710) is the same with a tokenizer that was trained with a perceptual loss.

    Args:
        checkpoint: of an image tokenizer.
    """

    checkpoint: str
    needs_pixels = True

    def build(self, layout: TokenLayout | int) -> TokenTarget:
        return _Codes(layout)
