"""The masking switch of a DiT: the layers between its embedded tokens and its output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.registry import Registry
from maskgen.core.subset import TokenSubset
from maskgen.nn.block import Block
from maskgen.nn.embeddings import sincos_2d, sincos_over
from maskgen.nn.heads import AdaHead
from maskgen.nn.initialisation import zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.published_blocks import BlockSizes, dit_block


@dataclass(frozen=True)
class Sizes:
    """Sizes of a DiT's backbone with `n_out` outputs per token of `grid`."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    backend: AttentionBackend
    grid: tuple[int, int]
    n_out: int
    qk_norm: bool = False
    mixer: Mixer = ATTENTION

    def blocks(self) -> nn.ModuleList:
        """The backbone's blocks."""
        return self.stack(self.depth, self.width, self.heads)

    def stack(self, depth: int, width: int, heads: int) -> nn.ModuleList:
        """Blocks of another width, with the backbone's condition."""
        block, length = self.block(width, heads), math.prod(self.grid)
        return nn.ModuleList(dit_block(block.at(layer, depth, length), self.width) for layer in range(depth))

    def block(self, width: int, heads: int) -> BlockSizes:
        """Sizes of one block."""
        return BlockSizes(width, heads, self.mlp_ratio, backend=self.backend, qk_norm=self.qk_norm, mixer=self.mixer)


class Trunk(nn.Module, ABC):
    """Embedded tokens (B, L, D) and a condition -> outputs of the kept tokens (B, K, n_out), or of all (B, L, n_out).

    The switch declares which.
    """

    @abstractmethod
    def forward(self, x: Tensor, hidden: Tensor, subset: TokenSubset | None) -> Tensor:
        """x (B, L, D), hidden (B, D) after its activation; `subset` None computes all tokens."""

    def features(self, x: Tensor, hidden: Tensor, block: int) -> Tensor:  # noqa: ARG002
        """x (B, L, D) after `block` of the encoder's blocks, 0 for half of them.

        Raises:
            ValueError: no such block, or a trunk whose blocks do not follow each other.
        """
        raise ValueError(f"the blocks of a {type(self).__name__} have no features")

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of tokens.

        Raises:
            ValueError: a trunk with a fixed grid.
        """


class Switch(ABC):
    """The key `masking` of a DiT; a final class is a frozen dataclass.

    Attributes:
        drops: whether it can be trained with tokens left out.
        answers_all: whether dropped tokens have outputs too.
        is_two_pass: whether a training step has a pass with all tokens and one with dropped tokens (MDT).
        reconstructs: whether dropped tokens have a reconstruction loss (MaskDiT).
        fixed_grid: whether the resolution cannot change.
        needs_attention: whether its blocks add a bias to attention scores, so that no other mixer can take its place.
    """

    drops: ClassVar[bool] = True
    answers_all: ClassVar[bool] = False
    is_two_pass: ClassVar[bool] = False
    reconstructs: ClassVar[bool] = False
    fixed_grid: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False

    @abstractmethod
    def trunk(self, sizes: Sizes) -> Trunk: ...


SWITCHES: Registry[Switch] = Registry("masking", Switch, home="maskgen.models:SWITCHES")


def check_masking(context: CheckContext, positions: str = "sincos") -> None:
    """Check a network with the key `masking` against what training drops and the resolutions of its phases.

    Raises:
        ValueError: tokens are dropped that the network cannot do without, or its grid cannot change.
    """
    masking: Switch = context.model["masking"]
    if context.keep_ratio < 1 and not masking.drops:
        raise ValueError(
            f"train.keep_ratio: model.masking {masking_name(masking)} drops no tokens; choose another or use 1, got "
            f"{context.keep_ratio}"
        )
    if context.resolution is not None and (masking.fixed_grid or positions == "learned"):
        what = f"masking {masking_name(masking)} is" if masking.fixed_grid else "learned positions are"
        way = "another masking" if masking.fixed_grid else "model.positions sincos"
        raise ValueError(
            f"train.phases: resolution {context.resolution}: {what} for one grid of tokens; use {way}, or leave it out"
        )


def masking_name(masking: Switch) -> str:
    """The name of a masking in recipes."""
    return next((name for name in SWITCHES.names() if SWITCHES.get(name) is type(masking)), type(masking).__name__)


def through(blocks: nn.ModuleList, x: Tensor, hidden: Tensor, block: int) -> Tensor:
    """x (B, L, D) after the first `block` of the blocks, 0 for half of them.

    Raises:
        ValueError: no such block.
    """
    if not 0 <= block <= len(blocks):
        raise ValueError(f"block must be in 1 to {len(blocks)}, or 0 for the middle one, got {block}")
    for one in blocks[: block or max(1, len(blocks) // 2)]:
        x = one(x, hidden)
    return x


class PlainTrunk(Trunk):
    """Blocks over the kept tokens: DiT, and naive masking."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.blocks = sizes.blocks()
        self.head = AdaHead(sizes.width, sizes.n_out)

    def forward(self, x: Tensor, hidden: Tensor, subset: TokenSubset | None) -> Tensor:
        if subset is not None:
            x = subset.gather(x)
        for block in self.blocks:
            x = block(x, hidden)
        outputs: Tensor = self.head(x, hidden)
        return outputs

    def features(self, x: Tensor, hidden: Tensor, block: int) -> Tensor:
        return through(self.blocks, x, hidden, block)


@SWITCHES.register("none")
@dataclass(frozen=True)
class NoMasking(Switch):
    """No masking: every token in every pass, DiT (arXiv 2212.09748)."""

    drops = False

    def trunk(self, sizes: Sizes) -> Trunk:
        return PlainTrunk(sizes)


@SWITCHES.register("naive")
@dataclass(frozen=True)
class NaiveMasking(Switch):
    """Dropped tokens are ignored: the network computes the kept ones only."""

    def trunk(self, sizes: Sizes) -> Trunk:
        return PlainTrunk(sizes)


class DeferredTrunk(Trunk):
    """A patch mixer over all tokens, then the backbone over the kept ones."""

    def __init__(self, sizes: Sizes, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.mixer_in, self.mixer_out = _bridge(sizes.width, width), _bridge(width, sizes.width)
        self.mixer_blocks = sizes.stack(depth, width, heads)
        self.backbone = PlainTrunk(sizes)

    def forward(self, x: Tensor, hidden: Tensor, subset: TokenSubset | None) -> Tensor:
        x = self._mixed(x, hidden)
        if subset is not None:
            x = subset.gather(x)  # before the projection: it is then of the kept tokens only
        outputs: Tensor = self.backbone(self.mixer_out(x), hidden, None)
        return outputs

    def features(self, x: Tensor, hidden: Tensor, block: int) -> Tensor:
        return self.backbone.features(self.mixer_out(self._mixed(x, hidden)), hidden, block)

    def _mixed(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = self.mixer_in(x)
        for block in self.mixer_blocks:
            x = block(x, hidden)
        return x


def _bridge(width_in: int, width_out: int) -> nn.Module:
    """LayerNorm and Linear between two widths, identity between equal ones."""
    if width_in == width_out:
        return nn.Identity()
    return nn.Sequential(nn.LayerNorm(width_in, eps=1e-6), nn.Linear(width_in, width_out))


@SWITCHES.register("deferred")
@dataclass(frozen=True)
class DeferredMasking(Switch):
    """A light patch mixer sees all tokens before most of them are dropped (MicroDiT, arXiv 2407.15811, section 3).

    Args:
        depth: blocks of the mixer.
        width, heads: of the mixer; 0 takes the backbone's.
    """

    depth: int = 2
    width: int = 0
    heads: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1 or min(self.width, self.heads) < 0:
            raise ValueError(
                f"a patch mixer needs depth 1 or more and no negative size, got depth {self.depth}, width {self.width} "
                f"and heads {self.heads}"
            )

    def trunk(self, sizes: Sizes) -> Trunk:
        return DeferredTrunk(sizes, self.depth, self.width or sizes.width, self.heads or sizes.heads)


class MaskDiTTrunk(Trunk):
    """An encoder over the kept tokens, a bridge, and a light decoder over all."""

    decoder_positions: Tensor

    def __init__(self, sizes: Sizes, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.base_grid = width, sizes.grid
        self.blocks = sizes.blocks()
        self.bridge = AdaHead(sizes.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("decoder_positions", sincos_2d(sizes.grid, width), persistent=False)
        self.decoder_blocks = sizes.stack(depth, width, heads)
        self.head = AdaHead(width, sizes.n_out, sizes.width)

    def set_grid(self, grid: tuple[int, int]) -> None:
        self.decoder_positions = sincos_over(self.base_grid, grid, self.width).to(self.decoder_positions.device)

    def forward(self, x: Tensor, hidden: Tensor, subset: TokenSubset | None) -> Tensor:
        if subset is not None:
            x = subset.gather(x)
        for block in self.blocks:
            x = block(x, hidden)
        x = self.bridge(x, hidden)
        x = (
            x + 0 * self.mask_token if subset is None else subset.scatter(x, self.mask_token)
        )  # so that the mask token always has a gradient
        x = x + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x, hidden)
        outputs: Tensor = self.head(x, hidden)
        return outputs

    def features(self, x: Tensor, hidden: Tensor, block: int) -> Tensor:
        return through(self.blocks, x, hidden, block)


@SWITCHES.register("maskdit")
@dataclass(frozen=True)
class MaskDiTMasking(Switch):
    """Encoder on kept tokens, decoder on all, dropped ones reconstructed (MaskDiT, arXiv 2306.09305).

    Args:
        depth, width, heads: of the decoder, which runs in sampling too.
    """

    depth: int = 8
    width: int = 512
    heads: int = 16
    answers_all = True
    reconstructs = True

    def trunk(self, sizes: Sizes) -> Trunk:
        return MaskDiTTrunk(sizes, self.depth, self.width, self.heads)


def init_trunk(trunk: nn.Module) -> None:
    """DiT's initialisation: Xavier-uniform matrices, zero biases; modulations and output layers zero."""
    for part in trunk.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in trunk.modules():
        if isinstance(part, Block | AdaHead) and part.modulation is not None:
            zero(part.modulation)
        if isinstance(part, AdaHead):
            zero(part.out)
    for name, parameter in trunk.named_parameters():
        if name.endswith("mask_token"):
            nn.init.normal_(parameter, std=0.02)
