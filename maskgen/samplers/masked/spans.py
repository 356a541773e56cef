"""Spans: the blocks of a layout with their steps, for rows that may differ in what is known."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from maskgen.core.streams import TokenLayout
from maskgen.samplers.masked.layout import Layout
from maskgen.samplers.masked.unmasking import Unmasking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Positions that are decoded together.

    Attributes:
        index: of the block.
        n_steps: largest number of steps.
        is_open: (B, L) bool, tokens to generate; False in rows that have another number of steps.
    """

    index: int
    n_steps: int
    is_open: Tensor


def spans(
    layout: Layout, unmasking: Unmasking, steps: int, is_open: Tensor, streams: TokenLayout | None = None
) -> Iterator[Span]:
    """The blocks of all rows in decoding order.

    The steps are divided among the blocks of a row that have tokens to generate, the remainder in the first ones, and
    each has at least one. Rows in which this gives other numbers are decoded after each other, so that a row does not
    depend on the rows beside it.
    """
    blocks = layout.blocks(is_open, streams)
    n_steps = _steps_by_row(unmasking, steps, is_open, blocks)
    for plan in sorted({tuple(row) for row in n_steps.tolist()}, reverse=True):
        rows = (n_steps == torch.tensor(plan)).all(1).to(is_open.device)
        for index, n in enumerate(plan):
            if n:
                yield Span(index, n, is_open & (blocks == index) & rows[:, None])


def _steps_by_row(unmasking: Unmasking, steps: int, is_open: Tensor, blocks: Tensor) -> Tensor:
    """(B, n) int64 on the CPU, steps of each block, 0 where it has no token to generate."""
    blocks, is_open = blocks.cpu(), is_open.cpu()
    n_blocks = max(int(blocks.max()), 0) + 1
    empty = torch.zeros(len(blocks), n_blocks, dtype=torch.int64)
    sizes = empty.scatter_add(1, blocks.clamp(min=0), (blocks >= 0).long())
    has_gap = empty.scatter_add(1, blocks.clamp(min=0), is_open.long()) > 0
    if not unmasking.uses_steps:
        return sizes.amax(0) * has_gap.any(0) * torch.ones_like(empty)
    n, rank = has_gap.sum(1, keepdim=True).clamp(min=1), has_gap.cumsum(1) - 1
    shares = ((steps + n - 1 - rank) // n).clamp(min=1) * has_gap
    if unmasking.max_one_a_token and steps > is_open.shape[1]:
        _say_limit(steps, is_open.shape[1])
    return torch.tensor(
        [
            [unmasking.n_steps(share, size) for share, size in zip(*row, strict=True)]
            for row in zip(shares.tolist(), sizes.tolist(), strict=True)
        ]
    )


@cache
def _say_limit(steps: int, length: int) -> None:
    log.warning("steps %d: more than one step per token changes nothing; %d tokens take as many steps", steps, length)
