"""The head that expects losses."""

from __future__ import annotations

from torch import Tensor, nn


class LossHead(nn.Module):
    """(..., D) -> (...): orders tokens by the loss expected of them (HPM, arXiv 2304.05919).

    The paper's predictor is a decoder of its own; this one is a norm and a product with a vector, which cost nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        expected: Tensor = self.out(self.norm(x))[..., 0]
        return expected
