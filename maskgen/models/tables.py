"""Tables of a network whose rows are tokens or classes: what another vocabulary or other classes change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from maskgen.nn.embeddings import LabelEmbedding

RowKind = Literal["token", "mask", "class", "null", "unused"]
"""What rows of a table are for: V tokens, [MASK], n classes, "no class"; `unused` are all that are left."""
Tables = Mapping[str, tuple[RowKind, ...]]
"""Name of a parameter or buffer -> the kinds of its rows, in order."""


@runtime_checkable
class HasTables(Protocol):
    """A network that declares its tables; each `LabelEmbedding` is one without being declared."""

    def tables(self) -> Tables:
        """Names and rows of the tables."""


def tables_of(network: nn.Module) -> Tables:
    """The tables of a network by name."""
    labels: dict[str, tuple[RowKind, ...]] = {
        f"{name}.weight": ("class", "null")
        for name, part in network.named_modules()
        if isinstance(part, LabelEmbedding)
    }
    return labels | (dict(network.tables()) if isinstance(network, HasTables) else {})
