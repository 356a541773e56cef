"""Multi-head subspace self-attention (MSSA), the compression step of CRATE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from maskgen.nn.mixers.attention import AttentionSettings, split_heads
from maskgen.nn.mixers.base import TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits
from maskgen.nn.mixers.rotary import rotate
from maskgen.nn.mixers.self_attention import HeadAttention


class SubspaceAttention(HeadAttention):
    """Attention whose queries, keys and values are one projection: W_o softmax(w w^T / sqrt(d)) w, w = U_h^T x.

    A gradient step on the coding rate of the tokens against the heads' subspaces U_h (CRATE, arXiv 2306.01129, eq. 14).

    Args:
        settings: sizes and options; key and value heads are the query heads.
    """

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings)
        self.subspaces = nn.Linear(settings.width, settings.inner, bias=False)
        self.out = nn.Linear(settings.inner, settings.width, bias=settings.out_bias)

    def _projected(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        w = split_heads(self.settings, self.subspaces(x))
        turned = w if rotation is None else rotate(w, rotation, self.settings.rotary)
        return turned, turned, w


@MIXERS.register("mssa")
@dataclass(frozen=True)
class Subspaces(Mixer):
    """Subspace self-attention: one projection for queries, keys and values, half of attention's parameters (CRATE)."""

    @property
    def traits(self) -> MixerTraits:
        return MixerTraits()

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:  # noqa: ARG002 - the same in every block
        return SubspaceAttention(sizes)
