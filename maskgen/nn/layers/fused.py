"""Several linear layers of one input in one matrix."""

from __future__ import annotations

from torch import nn


class FusedLinear(nn.Linear):
    """Linear whose rows belong to several matrices, of these numbers of rows: queries, keys and values.

    An optimizer that treats a matrix as a whole takes them apart (Muon).
    """

    def __init__(self, in_features: int, parts: tuple[int, ...], bias: bool = True) -> None:
        super().__init__(in_features, sum(parts), bias)
        self.parts = parts
