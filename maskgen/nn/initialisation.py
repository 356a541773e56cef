"""Initial weights."""

from __future__ import annotations

from torch import nn


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: weights truncated normal(0, std), cut at two deviations; biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias set to zero, as adaLN-zero starts (arXiv 2212.09748)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
