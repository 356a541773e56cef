"""Decoders of masked patches, the key `decoder` of MAE and DiffMAE: from an encoder to the patches asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from maskgen.core.registry import Registry
from maskgen.core.subset import TokenSubset
from maskgen.nn.decoders import JointDecoder
from maskgen.nn.embeddings import require_sincos, sincos_over
from maskgen.nn.encoders import key_mask
from maskgen.nn.published_blocks import ViTSizes, cross_block

Reads = Literal["last", "weighted", "reversed"]


class Decoder(nn.Module, ABC):
    """From what an encoder says of a class slot and the visible patches to vectors of the patches asked for.

    Attributes:
        width: W of the vectors.
    """

    width: int

    @abstractmethod
    def forward(
        self, states: Sequence[Tensor], visible: TokenSubset | None, queries: Tensor, asked: TokenSubset
    ) -> Tensor:
        """(B, M, W), of the M patches asked for.

        Args:
            states: (B, 1 + K, D) of each of the encoder's blocks, the last one normalised.
            visible: the K patches the encoder saw; None if it saw all.
            queries: (W,) or (B, L, W), what stands for a patch that was not seen; positions not yet added.
            asked: the M patches.
        """

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Patches will come from another grid of the same picture."""

    def init_mixing(self) -> None:
        """Draw the initial mix of encoder blocks that its blocks attend to, if it is learned."""


class _Placed(Decoder):
    """A decoder that tells patches by their positions, a class slot before them."""

    positions: Tensor

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width, self.base_grid = width, grid
        self.register_buffer("positions", slot_and_grid(grid, grid, width), persistent=False)

    def set_grid(self, grid: tuple[int, int]) -> None:
        self.positions = slot_and_grid(self.base_grid, grid, self.width).to(self.positions.device)


class DecoderSpec(ABC):
    """The key `decoder`; a final class is a frozen dataclass.

    Attributes:
        is_independent: whether a patch is decoded without regard to which others are, so that any share of them can be.
        needs_all: whether the encoder must have seen the masked patches too, as [MASK].
        takes_all: whether it may.
    """

    is_independent: ClassVar[bool] = False
    needs_all: ClassVar[bool] = False
    takes_all: ClassVar[bool] = False

    @abstractmethod
    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder: ...

    def require_fit(self, depth: int, sees_all: bool) -> None:  # noqa: ARG002 - for those that count
        """Of an encoder of `depth` blocks that sees [MASK]s too or not.

        Raises:
            ValueError: this decoder does not go with it.
        """
        if sees_all and not self.takes_all:
            raise ValueError("encoder_sees all goes with decoder linear or joint; take one of them, or see visible")
        if self.needs_all and not sees_all:
            raise ValueError("decoder linear is for an encoder that sees [MASK]s: mae with encoder_sees all")


DECODERS: Registry[DecoderSpec] = Registry("decoder", DecoderSpec, home="maskgen.models:DECODERS")


class _Joint(_Placed):
    def __init__(self, encoder: ViTSizes, sizes: ViTSizes, grid: tuple[int, int]) -> None:
        super().__init__(sizes.width, grid)
        self.stack = JointDecoder(encoder.width, sizes)

    def forward(
        self, states: Sequence[Tensor], visible: TokenSubset | None, queries: Tensor, asked: TokenSubset
    ) -> Tensor:
        return asked.gather(self.stack(states[-1], self.positions, queries, visible)[:, 1:])


@DECODERS.register("joint")
@dataclass(frozen=True)
class Joint(DecoderSpec):
    """Self-attention over visible and masked patches alike: MAE (arXiv 2111.06377, section 3; 8 x 512 there)."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    takes_all = True

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.depth, self.heads)

    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder:
        return _Joint(encoder, replace(encoder, width=self.width, depth=self.depth, heads=self.heads), grid)


class _Cross(_Placed):
    def __init__(
        self, encoder: ViTSizes, sizes: ViTSizes, grid: tuple[int, int], reads: Reads, looks_around: bool
    ) -> None:
        super().__init__(sizes.width, grid)
        self.reads, self.looks_around = reads, looks_around
        self.blocks = nn.ModuleList(cross_block(sizes.block, encoder.width, looks_around) for _ in range(sizes.depth))
        own = 0 if reads == "last" else sizes.depth  # the last state is normalised
        self.memory_norms = nn.ModuleList(nn.LayerNorm(encoder.width, eps=1e-6) for _ in range(own))
        self.mixing = nn.Parameter(torch.zeros(sizes.depth, encoder.depth)) if reads == "weighted" else None
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(
        self, states: Sequence[Tensor], visible: TokenSubset | None, queries: Tensor, asked: TokenSubset
    ) -> Tensor:
        x = asked.gather((queries + self.positions[1:]).expand(len(asked.keep), -1, -1))
        memory_mask = None if visible is None else key_mask(visible, 1)
        own_mask = _own_mask(asked) if self.looks_around else None
        for index, (block, memory) in enumerate(zip(self.blocks, self._memories(states), strict=True)):
            seen = self.memory_norms[index](memory) if len(self.memory_norms) else memory
            x = block(x, mask=own_mask, memory=seen, memory_mask=memory_mask)
        decoded: Tensor = self.norm(x)
        return decoded

    def init_mixing(self) -> None:
        if self.mixing is not None:
            nn.init.normal_(self.mixing, std=self.mixing.shape[1] ** -0.5)

    def _memories(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """(B, 1 + K, D), what each block reads."""
        if self.reads == "last":
            return [states[-1]] * len(self.blocks)
        if self.mixing is None:
            return list(states[::-1][: len(self.blocks)])
        return list(torch.einsum("di,ibkc->dbkc", self.mixing, torch.stack(list(states))))


def _own_mask(asked: TokenSubset) -> Tensor | None:
    """(B, 1, 1, M) bool, the patches that are meant; the first slot always, as there must be something to look at."""
    if asked.valid is None:
        return None
    first = torch.arange(asked.valid.shape[1], device=asked.valid.device) == 0
    return (asked.valid | first)[:, None, None]


@dataclass(frozen=True)
class _Reading(DecoderSpec):
    """Sizes of blocks that read the encoder, and what of it."""

    width: int = 512
    depth: int = 12
    heads: int = 16
    reads: Reads = "weighted"
    looks_around: ClassVar[bool]

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.depth, self.heads)

    def require_fit(self, depth: int, sees_all: bool) -> None:
        super().require_fit(depth, sees_all)
        if self.reads == "reversed" and self.depth > depth:
            raise ValueError(
                f"reads reversed gives each decoder block a block of the encoder: depth {self.depth} is more than its "
                f"{depth}; use fewer, or reads weighted or last"
            )

    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder:
        sizes = replace(encoder, width=self.width, depth=self.depth, heads=self.heads)
        return _Cross(encoder, sizes, grid, self.reads, self.looks_around)


@DECODERS.register("cross")
@dataclass(frozen=True)
class Cross(_Reading):
    """Masked patches look at the encoder's output and not at each other: CrossMAE (arXiv 2401.14391).

    Args:
        width, depth, heads: of its blocks.
        reads: what a block reads of the encoder: `weighted`, a learned mix of all its blocks (CrossMAE, section 3.3);
            `last`, its output; `reversed`, block i the i-th from the end (DiffMAE).
    """

    is_independent = True
    looks_around = False


@DECODERS.register("cross_self")
@dataclass(frozen=True)
class CrossSelf(_Reading):
    """Masked patches look at the encoder, then at each other: DiffMAE's decoder (arXiv 2304.03283, section 3.2).

    Args:
        width, depth, heads: of its blocks.
        reads: as of `cross`; DiffMAE's is `reversed`.
    """

    depth: int = 8
    reads: Reads = "reversed"
    looks_around = True


class _Nothing(Decoder):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        states: Sequence[Tensor],
        visible: TokenSubset | None,  # noqa: ARG002 - one signature for all decoders
        queries: Tensor,  # noqa: ARG002
        asked: TokenSubset,
    ) -> Tensor:
        return asked.gather(states[-1][:, 1:])


@DECODERS.register("linear")
@dataclass(frozen=True)
class LinearHead(DecoderSpec):
    """No decoder, the head alone: SimMIM (arXiv 2111.09886), whose encoder sees [MASK]s."""

    is_independent = True
    needs_all = True
    takes_all = True

    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder:  # noqa: ARG002
        return _Nothing(encoder.width)


def _require_sizes(width: int, depth: int, heads: int) -> None:
    """Of blocks over patches with positions.

    Raises:
        ValueError: they are not possible.
    """
    ViTSizes(width, depth, heads)
    require_sincos(width)


def slot_and_grid(base_grid: tuple[int, int], grid: tuple[int, int], width: int) -> Tensor:
    """(1 + L, D): zeros for the class slot, then sines and cosines of a grid spread over that of `base_grid` (MAE)."""
    return torch.cat([torch.zeros(1, width), sincos_over(base_grid, grid, width)])
