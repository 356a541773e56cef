"""Settings of normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm over the last dimension.

    Args:
        kind: `layer` subtracts the mean and divides by the standard deviation; `rms` divides by the root mean square
            (arXiv 1910.07467).
        eps: added to the variance (or mean square); None is the machine epsilon of the input's type, for `rms` only.
        has_weight: a learned factor per channel.
        has_bias: a learned offset per channel; needs `has_weight`, and `rms` has none.

    Raises:
        ValueError: a combination that does not exist.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float | None = 1e-6
    has_weight: bool = True
    has_bias: bool = True

    def __post_init__(self) -> None:
        if self.kind == "layer" and self.eps is None:
            raise ValueError("norm layer needs a number for eps, got None; 1e-6 is usual")
        if self.eps is not None and not self.eps > 0:
            raise ValueError(f"eps of a norm must be positive, got {self.eps}")

    def build(self, width: int) -> nn.LayerNorm | nn.RMSNorm:
        """The layer for vectors of `width` channels."""
        if self.kind == "rms":
            return nn.RMSNorm(width, self.eps, elementwise_affine=self.has_weight)
        assert self.eps is not None
        return nn.LayerNorm(width, self.eps, elementwise_affine=self.has_weight, bias=self.has_bias)


LAYER_NORM = Norm()
RMS_NORM = Norm("rms", eps=None)
