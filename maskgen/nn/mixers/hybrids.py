"""Hybrids of two token mixers: one after the other, by turns, or side by side (MaskMamba, arXiv 2409.19937)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits
from maskgen.nn.mixers.self_attention import ATTENTION


@dataclass(frozen=True)
class _TwoMixers(Mixer):
    """What a stack of both can do; final classes decide which is where."""

    first: Mixer
    second: Mixer = ATTENTION

    @property
    def traits(self) -> MixerTraits:
        return self.first.traits.joined(self.second.traits)


@MIXERS.register("serial")
@dataclass(frozen=True)
class Serial(_TwoMixers):
    """One mixer in the first blocks, another in the last; MaskMamba's best: Mamba, then attention.

    Args:
        first: of the first round(share depth) blocks.
        second: of the others.
        share: of the blocks that have the first.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share}")

    @property
    def traits(self) -> MixerTraits:
        return replace(super().traits, has_weights=self.second.traits.has_weights)  # of the last block

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:
        mixer = self.first if place.layer < round(self.share * place.depth) else self.second
        return mixer.build(sizes, place)


@MIXERS.register("alternating")
@dataclass(frozen=True)
class Alternating(_TwoMixers):
    """Two mixers by turns, block by block.

    Args:
        first: of blocks 0, 2, ...
        second: of blocks 1, 3, ...
    """

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:
        return (self.second if place.layer % 2 else self.first).build(sizes, place)


class ParallelMixing(TokenMixer):
    """Groups of channels, each mixed by a layer of its own, and concatenated."""

    def __init__(self, layers: list[TokenMixer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fixed_length = next((one.fixed_length for one in layers if one.fixed_length), None)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: AttentionMask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Raises:
            ValueError: a cache, which has room for one layer.
        """
        if cache is not None:
            raise ValueError("mixers side by side have no cache; decode without one")
        groups = x.chunk(len(self.layers), -1)
        return torch.cat([one(group, rotation, mask) for one, group in zip(self.layers, groups, strict=True)], -1)


@MIXERS.register("parallel")
@dataclass(frozen=True)
class Parallel(_TwoMixers):
    """Channels in groups, mixed by two mixers by turns: grouped parallel.

    Args:
        first: of groups 0, 2, ...
        second: of groups 1, 3, ...
        groups: number of groups, a divisor of width and heads; 2 and 4 are published.
    """

    groups: int = 2

    def __post_init__(self) -> None:
        if self.groups < 2 or self.groups % 2:
            raise ValueError(f"groups must be even, got {self.groups}")

    @property
    def traits(self) -> MixerTraits:
        return replace(super().traits, has_cache=False, has_weights=False)

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:
        if sizes.width % self.groups or sizes.heads % self.groups:
            raise ValueError(f"groups must divide width {sizes.width} and heads {sizes.heads}, got {self.groups}")
        part = replace(sizes, width=sizes.width // self.groups, heads=sizes.heads // self.groups)
        mixers = (self.first, self.second)
        return ParallelMixing([mixers[group % 2].build(part, place) for group in range(self.groups)])
