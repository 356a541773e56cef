"""Layouts: which positions are decoded together, and which after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.groups import GroupPlan
from maskgen.core.registry import Registry
from maskgen.core.streams import TokenLayout


class Layout(ABC):
    """Divides the tokens to generate into blocks that are decoded one after another.

    The steps of a decoding are divided evenly among the blocks of a row that have tokens to generate.
    """

    def is_single(self, length: int) -> bool:  # noqa: ARG002
        """Whether a row of L tokens is always one block."""
        return False

    @abstractmethod
    def blocks(self, is_open: Tensor, streams: TokenLayout | None = None) -> Tensor:
        """(B, L) int64, the block of each position, decoded in ascending order; -1 for positions in none.

        Args:
            is_open: (B, L) bool, tokens to generate.
            streams: of the row, None for one stream.
        """


LAYOUTS: Registry[Layout] = Registry("layout", Layout, home="maskgen.samplers.masked:LAYOUTS")


@LAYOUTS.register("full")
@dataclass(frozen=True)
class Full(Layout):
    """All positions at once."""

    def is_single(self, length: int) -> bool:  # noqa: ARG002
        return True

    def blocks(self, is_open: Tensor, streams: TokenLayout | None = None) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(is_open, dtype=torch.int64)


@LAYOUTS.register("blocks")
@dataclass(frozen=True)
class Blocks(Layout):
    """Blocks of `block_length` from left to right (semi-autoregressive: LLaDA, section 2.4).

    Each block has its own time from 1 to 0, so a time-conditioned network is given the time of the block.

    Args:
        block_length: tokens per block; the last one may be shorter.
        start: the first block begins at the first token to generate of each row, after its `prompt`, or at the first
            token of the `row`, as block-diffusion networks need it.
    """

    block_length: int = 32
    start: Literal["prompt", "row"] = "prompt"

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    def is_single(self, length: int) -> bool:
        return length <= self.block_length

    def blocks(self, is_open: Tensor, streams: TokenLayout | None = None) -> Tensor:  # noqa: ARG002
        place = torch.arange(is_open.shape[1], device=is_open.device).expand(is_open.shape)
        if self.start == "prompt":
            first = torch.where(is_open, place, is_open.shape[1]).amin(1, keepdim=True)
            place = (place - first).clamp(min=-1)
        return torch.div(place, self.block_length, rounding_mode="floor")


@dataclass(frozen=True)
class Groups(Layout):
    """The groups of a plan, one after another (M2T, arXiv 2304.07313); networks with a plan bring it themselves."""

    plan: GroupPlan

    def is_single(self, length: int) -> bool:  # noqa: ARG002
        return self.plan.n_groups == 1

    def blocks(self, is_open: Tensor, streams: TokenLayout | None = None) -> Tensor:  # noqa: ARG002
        return self.plan.index.to(is_open.device).expand(is_open.shape)


@LAYOUTS.register("streams")
@dataclass(frozen=True)
class StreamsInTurn(Layout):
    """One stream after another, in the order of their names in `first`, then all others together.

    `{type: streams, first: [label]}` generates a label and then the image that fits it; `full` decodes all streams
    together. A row of one stream is one block.
    """

    first: tuple[str, ...] = ()

    def blocks(self, is_open: Tensor, streams: TokenLayout | None = None) -> Tensor:
        index = torch.full(is_open.shape, len(self.first), dtype=torch.int64, device=is_open.device)
        if streams is None:
            return torch.zeros_like(index)
        unknown = [name for name in self.first if name not in streams.index_of]
        if unknown:
            raise UserError(f"layout.first: unknown stream {unknown[0]!r}; choose from {', '.join(streams.index_of)}")
        for rank, name in enumerate(self.first):
            index[:, streams.place(name)] = rank
        return index
