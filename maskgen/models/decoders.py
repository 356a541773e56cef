"""Decoders of masked patches, the key `decoder` of MAE and DiffMAE."""

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
from maskgen.nn.encoders import EncoderStates, key_mask
from maskgen.nn.published_blocks import ViTSizes, cross_block

Reads = Literal["last", "weighted", "reversed"]


@dataclass(frozen=True)
class Reading:
    """Which encoder states the blocks of a decoder attend to, and whether a mix of them has the encoder's input too."""

    maps: Reads
    has_input: bool = False


class Decoder(nn.Module, ABC):
    """Encoder states of a class token and the visible patches -> vectors of the target patches.

    Attributes:
        width: W of the vectors.
    """

    width: int

    @abstractmethod
    def forward(
        self, states: EncoderStates, visible: TokenSubset | None, queries: Tensor, targets: TokenSubset
    ) -> Tensor:
        """Vectors (B, M, W) of the M target patches.

        Args:
            states: of the encoder, (B, 1 + K, D) each.
            visible: the K encoded patches; None for all.
            queries: (W,) or (B, L, W), inputs for patches that were not encoded; positions not yet added.
            targets: the M patches.
        """

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image."""

    def init_mixing(self) -> None:
        """Initialise the learned mix of encoder states, if there is one."""


class _Placed(Decoder):
    """A decoder with fixed positions of a class token and the patches."""

    positions: Tensor

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width, self.base_grid = width, grid
        self.register_buffer("positions", class_and_grid(grid, grid, width), persistent=False)

    def set_grid(self, grid: tuple[int, int]) -> None:
        self.positions = class_and_grid(self.base_grid, grid, self.width).to(self.positions.device)


class DecoderSpec(ABC):
    """The key `decoder`; a final class is a frozen dataclass.

    Attributes:
        reads_output: whether it uses the encoder's normalised output.
        is_independent: whether a patch is decoded independently of the other targets, so that any subset can be.
        needs_all: whether the encoder's input must include the masked patches, as [MASK].
        takes_all: whether it may include them.
    """

    is_independent: ClassVar[bool] = False
    needs_all: ClassVar[bool] = False
    takes_all: ClassVar[bool] = False

    @property
    def reads_output(self) -> bool:
        return True

    @abstractmethod
    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder: ...

    def require_fit(self, depth: int, sees_all: bool) -> None:  # noqa: ARG002 - for those that count
        """Check the fit to an encoder of `depth` blocks, whose input includes [MASK]s or not.

        Raises:
            ValueError: the decoder does not fit.
        """
        if sees_all and not self.takes_all:
            raise ValueError("encoder_sees all goes with decoder linear or joint; take one of them, or see visible")
        if self.needs_all and not sees_all:
            raise ValueError("decoder linear needs an encoder whose input includes [MASK]s: set encoder_sees all")


DECODERS: Registry[DecoderSpec] = Registry("decoder", DecoderSpec, home="maskgen.models:DECODERS")


class _Joint(_Placed):
    def __init__(self, encoder: ViTSizes, sizes: ViTSizes, grid: tuple[int, int]) -> None:
        super().__init__(sizes.width, grid)
        self.stack = JointDecoder(encoder.width, sizes)

    def forward(
        self, states: EncoderStates, visible: TokenSubset | None, queries: Tensor, targets: TokenSubset
    ) -> Tensor:
        return targets.gather(self.stack(states.output, self.positions, queries, visible)[:, 1:])


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
        self, encoder: ViTSizes, sizes: ViTSizes, grid: tuple[int, int], reading: Reading, has_self_attention: bool
    ) -> None:
        super().__init__(sizes.width, grid)
        self.reading, self.has_self_attention = reading, has_self_attention
        self.blocks = nn.ModuleList(
            cross_block(sizes.block, encoder.width, has_self_attention) for _ in range(sizes.depth)
        )
        own = 0 if reading.maps == "last" else sizes.depth  # the last state is normalised
        self.memory_norms = nn.ModuleList(nn.LayerNorm(encoder.width, eps=1e-6) for _ in range(own))
        n_maps = encoder.depth + reading.has_input
        self.mixing = nn.Parameter(torch.zeros(sizes.depth, n_maps)) if reading.maps == "weighted" else None
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(
        self, states: EncoderStates, visible: TokenSubset | None, queries: Tensor, targets: TokenSubset
    ) -> Tensor:
        x = targets.gather((queries + self.positions[1:]).expand(len(targets.keep), -1, -1))
        memory_mask = None if visible is None else key_mask(visible, 1)
        own_mask = _own_mask(targets) if self.has_self_attention else None
        for index, (block, memory) in enumerate(zip(self.blocks, self._memories(states), strict=True)):
            seen = self.memory_norms[index](memory) if len(self.memory_norms) else memory
            x = block(x, mask=own_mask, memory=seen, memory_mask=memory_mask)
        decoded: Tensor = self.norm(x)
        return decoded

    def init_mixing(self) -> None:
        if self.mixing is not None:
            nn.init.normal_(self.mixing, std=self.mixing.shape[1] ** -0.5)

    def _memories(self, states: EncoderStates) -> Sequence[Tensor]:
        """Memory (B, 1 + K, D) of each block."""
        if self.reading.maps == "last":
            return [states.output] * len(self.blocks)
        if self.mixing is None:
            return states.normalised[::-1][: len(self.blocks)]
        maps = states.maps if self.reading.has_input else states.maps[1:]
        return list(torch.einsum("di,ibkc->dbkc", self.mixing, torch.stack(maps)))


def _own_mask(targets: TokenSubset) -> Tensor | None:
    """(B, 1, 1, M) bool, False for padding; the first patch is always attended to, so that no row is without a key."""
    if targets.valid is None:
        return None
    first = torch.arange(targets.valid.shape[1], device=targets.valid.device) == 0
    return (targets.valid | first)[:, None, None]


@dataclass(frozen=True)
class _Reading(DecoderSpec):
    """Sizes of cross-attention blocks, and which encoder states they attend to."""

    width: int = 512
    depth: int = 12
    heads: int = 16
    reads: Reads = "weighted"
    reads_input: bool = False
    has_self_attention: ClassVar[bool]

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.depth, self.heads)
        if self.reads_input and self.reads != "weighted":
            raise ValueError(f"reads_input is for reads weighted, got reads {self.reads}; change either")

    @property
    def reads_output(self) -> bool:
        return self.reads != "weighted"

    def require_fit(self, depth: int, sees_all: bool) -> None:
        super().require_fit(depth, sees_all)
        if self.reads == "reversed" and self.depth > depth:
            raise ValueError(
                f"reads reversed gives each decoder block a block of the encoder: depth {self.depth} is more than its "
                f"{depth}; use fewer, or reads weighted or last"
            )

    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder:
        sizes = replace(encoder, width=self.width, depth=self.depth, heads=self.heads)
        reading = Reading(self.reads, self.reads_input)
        return _Cross(encoder, sizes, grid, reading, self.has_self_attention)


@DECODERS.register("cross")
@dataclass(frozen=True)
class Cross(_Reading):
    """Masked patches attend to the encoder and not to each other: CrossMAE (arXiv 2401.14391).

    Args:
        width, depth, heads: of its blocks.
        reads: encoder states that a block attends to: `weighted`, a learned mix of all blocks' outputs, none of them
            normalised before (CrossMAE, section 3.3); `last`, the output; `reversed`, block i the i-th from the end
            (DiffMAE).
        reads_input: the mix has the encoder's input too (`use_input` of the public code).
    """

    is_independent = True
    has_self_attention = False


@DECODERS.register("cross_self")
@dataclass(frozen=True)
class CrossSelf(_Reading):
    """Masked patches attend to the encoder, then to each other: DiffMAE's decoder (arXiv 2304.03283, section 3.2).

    Args:
        width, depth, heads: of its blocks.
        reads, reads_input: as in `cross`; DiffMAE's is `reversed`.
    """

    depth: int = 8
    reads: Reads = "reversed"
    has_self_attention = True


class _Identity(Decoder):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        states: EncoderStates,
        visible: TokenSubset | None,  # noqa: ARG002 - one signature for all decoders
        queries: Tensor,  # noqa: ARG002
        targets: TokenSubset,
    ) -> Tensor:
        return targets.gather(states.output[:, 1:])


@DECODERS.register("linear")
@dataclass(frozen=True)
class LinearHead(DecoderSpec):
    """No decoder, the head alone: SimMIM (arXiv 2111.09886), whose encoder input includes [MASK]s."""

    is_independent = True
    needs_all = True
    takes_all = True

    def build(self, encoder: ViTSizes, grid: tuple[int, int]) -> Decoder:  # noqa: ARG002
        return _Identity(encoder.width)


def _require_sizes(width: int, depth: int, heads: int) -> None:
    """Check the sizes of blocks over patches with sine-cosine positions.

    Raises:
        ValueError: they are not possible.
    """
    ViTSizes(width, depth, heads)
    require_sincos(width)


def predicted_width(target_width: int, width: int, token_width: int) -> int:
    """Numbers that a head predicts per patch; `target_width` 0 stands for those of a patch, -1 for the features'."""
    return width if target_width < 0 else target_width or token_width


def class_and_grid(base_grid: tuple[int, int], grid: tuple[int, int], width: int) -> Tensor:
    """(1 + L, D): zeros for the class token, then sines and cosines of `grid`, scaled to cover `base_grid` (MAE)."""
    return torch.cat([torch.zeros(1, width), sincos_over(base_grid, grid, width)])
