"""What stands for "no caption" in networks that were trained with the text encoder's empty caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NullCaption(nn.Module):
    """Embedded captions (B, S, C) with those of zeros, "no caption" in this package, replaced by a stored one.

    Published networks are guided by the embedding of the empty text. It is a buffer, of zeros until it is given.

    Args:
        length: S.
        width: C.
    """

    value: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(length, width))

    def forward(self, n: int, captions: Tensor | None) -> Tensor:
        """Captions (B, S, C), or None -> (n, S, C).

        Raises:
            ValueError: captions of another shape.
        """
        if captions is None:
            return self.value.expand(n, -1, -1)
        if captions.shape[1:] != self.value.shape:
            raise ValueError(f"captions must be {tuple(self.value.shape)} each, got {tuple(captions.shape[1:])}")
        is_null = (captions == 0).flatten(1).all(1)
        return torch.where(is_null[:, None, None], self.value, captions.to(self.value.dtype))
