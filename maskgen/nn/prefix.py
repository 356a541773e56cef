"""Where class tokens stand among the others, for mixers that scan a row in order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskgen.core.subset import TokenSubset

PrefixPlace = Literal["head", "middle", "tail"]


def prefix_order(
    n_prefix: int,
    n_tokens: int,
    place: PrefixPlace,
    subset: TokenSubset | None = None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """The order of a row [prefix, tokens] that brings the prefix to a place among the tokens.

    Args:
        n_prefix: number of class tokens and the like in front.
        n_tokens: number of tokens after them, with those that are dropped.
        place: at the `head`, before half of the tokens (`middle`), or at the `tail`.
        subset: the tokens that are there; None for all.
        device: of the order, without a subset.

    Returns:
        (1, n_prefix + n_tokens) int64, (B, n_prefix + K) of a subset; None where nothing changes.
    """
    if place == "head" or not n_prefix:
        return None
    tokens = torch.arange(n_tokens, device=device)[None] if subset is None else subset.keep
    before = 2 * (n_tokens // 2 if place == "middle" else n_tokens) - 1
    keys = torch.cat([tokens.new_full((len(tokens), n_prefix), before), 2 * tokens], 1)
    return keys.argsort(dim=1, stable=True)


def reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, n, D), or (n, D) of all rows, in an order (1, n) or (B, n): (B, n, D); x itself without one."""
    if order is None:
        return x
    x = x if x.ndim > 2 else x[None]
    n_rows = max(len(x), len(order))
    index = order.expand(n_rows, -1)
    return x.expand(n_rows, -1, -1).gather(1, index[..., None].expand(-1, -1, x.shape[2]))
