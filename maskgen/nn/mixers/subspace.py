"""Multi-head subspace self-attention (MSSA), the compression step of CRATE."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.mixers.attention import AttentionSettings, attend, merge_heads, resolve_backend, split_heads
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits
from maskgen.nn.mixers.rotary import rotate


class SubspaceAttention(TokenMixer):
    """Attention whose queries, keys and values are one projection: W_o softmax(w w^T / sqrt(d)) w, w = U_h^T x.

    A gradient step on the coding rate of the tokens against the heads' subspaces U_h (CRATE, arXiv 2306.01129, eq. 14).

    Args:
        settings: sizes and options; key and value heads are the query heads.
    """

    has_cache = True

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__()
        self.settings, self.backend = settings, resolve_backend(settings.backend)
        self.subspaces = nn.Linear(settings.width, settings.inner, bias=False)
        self.out = nn.Linear(settings.inner, settings.width, bias=settings.out_bias)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: AttentionMask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); a `mask` has keys of cached tokens first."""
        q, v = self._projected(x, rotation)
        k = q
        if cache is not None:
            k, v = cache.extend(k, v)
        settings = self.settings
        dropout = settings.dropout if settings.weight_dropout is None else settings.weight_dropout
        x = merge_heads(attend(q, k, v, self.backend, dropout if self.training else 0.0, mask))
        return F.dropout(self.out(x), settings.dropout, self.training)

    def head_weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, H, L, L), attention from each token to each."""
        q, _ = self._projected(x, rotation)
        weights: Tensor = (q @ q.mT / q.shape[-1] ** 0.5).softmax(-1)
        return weights

    def _projected(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and keys in one, rotated to their positions, and values: (B, H, L, d)."""
        w = split_heads(self.settings, self.subspaces(x))
        return w if rotation is None else rotate(w, rotation, self.settings.rotary), w


@MIXERS.register("mssa")
@dataclass(frozen=True)
class Subspaces(Mixer):
    """Subspace self-attention: one projection for queries, keys and values, half of attention's parameters (CRATE)."""

    @property
    def traits(self) -> MixerTraits:
        return MixerTraits()

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:  # noqa: ARG002 - the same in every block
        return SubspaceAttention(sizes)
