"""The interface of targets, and the images behind patches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.registry import Registry
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.objectives.targets.source import Source
from maskgen.tokenizers.image.patches import unpatchify

NumberError = Literal["squared", "absolute"]

OWN_WIDTH = -1
"""A target width that stands for the width of the network's own features."""


class TokenTarget(nn.Module, ABC):
    """x_0 (B, L, D) -> what is predicted of each token, and how predictions are compared with it.

    Its buffers (a teacher's weights, prototypes) are stored in checkpoints, so that a run resumes exactly.

    Attributes:
        width: W, numbers predicted per token; 0 for D, `OWN_WIDTH` for the width of the network's features.
    """

    width: int = 0

    @abstractmethod
    def forward(self, x_0: Tensor) -> Tensor:
        """x_0 (B, L, D) -> (B, L, W), or ids (B, L) int64; without gradient."""

    @abstractmethod
    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        """(M,), the error of each prediction.

        Args:
            value: (M, W), predictions of the targets, packed row by row.
            truth: output of `forward` for all tokens.
            targets: the M predicted positions.
        """

    def attach(self, network: nn.Module, source: Source | None) -> None:
        """Take copies of what targets are computed with, before the first step.

        Args:
            network: that is trained, with its first weights.
            source: the checkpoint named by the spec; None where it is not loaded (outside of training).

        Raises:
            ValueError: they do not fit the tokens.
        """

    def update(self, network: nn.Module, progress: float) -> None:
        """Called before every training step; `progress` is the share of the steps that are done."""

    def error_name(self) -> str:
        """What the error is called in logs."""
        return "error"

    def logs(self, truth: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002 - of those that have some
        """Further values to log, (2,) each: a sum and its count."""
        return {}


class NumberTarget(TokenTarget):
    """Targets that are numbers (B, L, W), compared one by one.

    Attributes:
        kind: error of a number.
    """

    kind: NumberError = "squared"

    def error(self, value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
        apart = value - targets.select(truth)
        return (apart.square() if self.kind == "squared" else apart.abs()).mean(-1)

    def error_name(self) -> str:
        return f"{self.kind}_error"


class TargetSpec(ABC):
    """The key `target`; a final class is a frozen dataclass.

    Attributes:
        is_image: a prediction is a token, so that pictures can be completed.
        needs_pixels: tokens must be patches of pixels.
        copies_network: its state is a copy of the network, which sharded training does not support.
        checkpoint: where the target's own network or tokenizer comes from; empty for none.
    """

    is_image: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = False
    copies_network: ClassVar[bool] = False
    checkpoint: str = ""

    @abstractmethod
    def build(self, layout: TokenLayout | int) -> TokenTarget:
        """The target of rows of a layout; a number stands for tokens of unknown number and width (recipe checks)."""

    def width(self, layout: TokenLayout | int, source: Source | None) -> int:
        """`TokenTarget.width`, which may be known from the source only."""
        return source.width if source is not None else self.build(layout).width

    def check(self, context: CheckContext) -> None:
        """Check the other parts of a recipe.

        Raises:
            ValueError: the target does not work with one of them; the message begins with a key.
        """
        if self.needs_pixels and not context.has_pixels:
            raise ValueError(
                "objective.target: this one is computed from images, and the tokens are no pixels; use tokenizer "
                "patches, or target pixels or normalised"
            )
        if context.resolution is not None and (self.copies_network or self.checkpoint):
            raise ValueError(
                f"train.phases: resolution {context.resolution} would need another teacher; leave it out, or use a "
                "target without one (pixels, normalised, hog)"
            )


TARGETS: Registry[TargetSpec] = Registry("target", TargetSpec, home="maskgen.objectives.targets:TARGETS")


def patch_size(width: int) -> tuple[int, int]:
    """Channels C and side p of patches of `width` = C p^2 numbers, C 1 or 3.

    Raises:
        ValueError: a width of no such patch.
    """
    for channels in (1, 3):
        side = math.isqrt(width // channels)
        if channels * side**2 == width:
            return channels, side
    raise ValueError(f"tokens of {width} numbers are no square patches of one or three channels")


def images_of(x_0: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Patches (B, L, D) in [-1, 1] -> images (B, C, H, W) in [0, 1]."""
    _, side = patch_size(x_0.shape[-1])
    return (unpatchify(x_0, (grid[0], grid[1]), side) + 1) / 2


def grid_of(layout: TokenLayout | int) -> tuple[int, ...]:
    """Grid of the tokens; () if the layout is not known."""
    return () if isinstance(layout, int) else layout.shape


def feature_error(value: Tensor, truth: Tensor, targets: TokenSubset) -> Tensor:
    """(M,), smooth L1 of predicted features (M, W) and those of all tokens (B, L, W), averaged over W."""
    return F.smooth_l1_loss(value, targets.select(truth), reduction="none").mean(-1)


def layer_normalised(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Features (..., D) of mean 0 and variance 1 over D, without weights (MaskDistill, dBOT)."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)
