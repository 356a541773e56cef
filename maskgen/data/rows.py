"""Rows of several streams as training data: tokens of pictures from the cache, those of the other parts beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.core.predictions import NULL
from maskgen.core.streams import Part, TokenLayout
from maskgen.data.base import ImageSplit
from maskgen.data.loader import Rows

CHUNK = 4096
"""Samples that are encoded together."""


class StreamRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows (N, L) of global ids; labels are `NULL`, a class is a stream of its own.

    Args:
        layout: of the rows.
        pictures: rows of their tokens (N, L_s), the stream `image`.
        others: tokens (N, L_s) of all other streams by name.
    """

    def __init__(self, layout: TokenLayout, pictures: Rows, others: Mapping[str, Tensor]) -> None:
        self.layout, self.others = layout, {name: tokens.to(torch.int32) for name, tokens in others.items()}
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 and labels (B,) int64."""
        index = torch.as_tensor(indices)
        own = self.pictures.__getitems__(indices)[0].flatten(1)
        parts = {name: tokens[index].long() for name, tokens in self.others.items()}
        return self.layout.join({"image": own, **parts}), torch.full((len(index),), NULL)


def encoded_part(split: ImageSplit, name: str, encode: Callable[[Part], Tensor]) -> Tensor:
    """Tokens (N, L_s) of a part of all samples of a split."""
    ends = range(0, len(split), CHUNK)
    return torch.cat([encode(split.part(name, range(at, min(at + CHUNK, len(split))))) for at in ends])
