"""Feed-forward layers: plain and gated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "sigmoid"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


class Mlp(nn.Module):
    """Linear - activation - Linear - dropout over (B, L, D).

    Args:
        width: D.
        hidden: width between the two layers.
        dropout: of the output.
        activation: `gelu` (exact), `gelu_tanh` (its approximation), `silu`, `relu` or `sigmoid`.
        has_bias: of both layers.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float = 0.0, activation: Activation = "gelu", has_bias: bool = True
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=has_bias)
        self.contract = nn.Linear(hidden, width, bias=has_bias)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.contract(ACTIVATIONS[self.activation](self.expand(x)))
        return F.dropout(x, self.dropout, self.training)


class GatedMlp(nn.Module):
    """W3 (activation(W1 x) * W2 x) over (B, L, D) (arXiv 2002.05202); `silu` makes it SwiGLU, `gelu_tanh` GeGLU.

    `expand` holds W1 above W2, `contract` is W3.

    Args:
        width: D.
        hidden: rows of W1 and of W2.
        dropout: of the output.
        activation: as of `Mlp`.
        has_bias: of all layers.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float = 0.0, activation: Activation = "silu", has_bias: bool = False
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden, bias=has_bias)
        self.contract = nn.Linear(hidden, width, bias=has_bias)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, -1)
        x = self.contract(ACTIVATIONS[self.activation](gate) * value)
        return F.dropout(x, self.dropout, self.training)

    def init(self, std: float) -> None:
        """MicroDiT's start: W1 of standard deviation 0.02, W2 and W3 of `std`."""
        gate, value = self.expand.weight.chunk(2)
        nn.init.normal_(gate, std=0.02)
        for weight in (value, self.contract.weight):
            nn.init.normal_(weight, std=std)


def gated_width(hidden: int, multiple: int) -> int:
    """Width of a gated layer: two thirds of a plain one's, as three matrices then cost what two do, rounded up."""
    return -(-int(hidden * 2 / 3) // multiple) * multiple
