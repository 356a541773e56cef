"""The tokens themselves as targets: pixels, and normalised pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maskgen.core.streams import TokenLayout
from maskgen.objectives.targets.base import TARGETS, NumberTarget, TargetSpec, TokenTarget


class _Tokens(NumberTarget):
    def forward(self, x_0: Tensor) -> Tensor:
        return x_0


class _NormalisedTokens(_Tokens):
    def forward(self, x_0: Tensor) -> Tensor:
        return normalised(x_0)


@TARGETS.register("pixels")
@dataclass(frozen=True)
class Pixels(TargetSpec):
    """The tokens as they are, by squared error: predictions complete pictures (MAE, SimMIM)."""

    is_image = True

    def build(self, layout: TokenLayout | int) -> TokenTarget:  # noqa: ARG002
        return _Tokens()


@TARGETS.register("normalised")
@dataclass(frozen=True)
class Normalised(TargetSpec):
    """Each token normalised by itself, (x - mean) / sqrt(variance + 1e-6), the variance unbiased (MAE, section 4.1)."""

    def build(self, layout: TokenLayout | int) -> TokenTarget:
        if isinstance(layout, TokenLayout) and layout.width == 1:
            raise ValueError("target: normalised needs tokens of at least 2 numbers, these have 1; use target pixels")
        return _NormalisedTokens()


def normalised(x: Tensor) -> Tensor:
    """Tokens (B, L, D) of mean 0 and variance 1 each, the unbiased one."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
