"""Multi-head self-attention."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.layers.fused import FusedLinear
from maskgen.nn.mixers.attention import AttentionSettings, attend, merge_heads, resolve_backend, split_heads
from maskgen.nn.mixers.base import AttentionMask, LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace, MixerTraits
from maskgen.nn.mixers.rotary import rotate


class HeadAttention(TokenMixer):
    """Attention among the tokens of a row, by heads. Final classes make queries, keys and values of them, and `out`."""

    has_cache = True
    out: nn.Linear

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__()
        self.settings, self.backend = settings, resolve_backend(settings.backend)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, mask: AttentionMask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); a `mask` has keys of cached tokens first."""
        q, k, v = self._projected(x, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        settings = self.settings
        dropout = settings.dropout if settings.weight_dropout is None else settings.weight_dropout
        x = merge_heads(attend(q, k, v, self.backend, dropout if self.training else 0.0, mask))
        return F.dropout(self.out(x), settings.dropout, self.training)

    def head_weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, H, L, L), attention from each token to each."""
        q, k, _ = self._projected(x, rotation)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1) if q.shape[1] != k.shape[1] else k
        weights: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return weights

    @abstractmethod
    def _projected(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, L, d), keys and values (B, H_kv, L, d), rotated to their positions."""


class SelfAttention(HeadAttention):
    """Self-attention over (B, L, D).

    Args:
        settings: sizes and options.
        projections: `qkv`, one layer for queries, keys and values, in this order; or `q_kv`, queries apart, the layout
            of MicroDiT's weights.
    """

    def __init__(self, settings: AttentionSettings, projections: Literal["qkv", "q_kv"] = "qkv") -> None:
        super().__init__(settings)
        width, inner, kv_inner, bias = settings.width, settings.inner, settings.kv_inner, settings.qkv_bias
        parts = (inner, kv_inner, kv_inner)
        self.qkv = FusedLinear(width, parts, bias=bias) if projections == "qkv" else None
        self.q = nn.Linear(width, inner, bias=bias) if projections == "q_kv" else None
        self.kv = nn.Linear(width, 2 * kv_inner, bias=bias) if projections == "q_kv" else None
        self.out = nn.Linear(inner, width, bias=settings.out_bias)
        self.q_norm, self.k_norm = settings.build_qk_norm(inner), settings.build_qk_norm(kv_inner)

    def _projected(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        inner, kv_inner = self.settings.inner, self.settings.kv_inner
        if self.qkv is not None:
            # Split along D, so that the backward pass concatenates the three gradients in one copy.
            q, k, v = self.qkv(x).split([inner, kv_inner, kv_inner], -1)
        else:
            assert self.q is not None
            assert self.kv is not None
            q, (k, v) = self.q(x), self.kv(x).chunk(2, -1)
        q, k = split_heads(self.settings, q, self.q_norm), split_heads(self.settings, k, self.k_norm)
        v = split_heads(self.settings, v)
        if rotation is None:
            return q, k, v
        return rotate(q, rotation, self.settings.rotary), rotate(k, rotation, self.settings.rotary), v


@MIXERS.register("attention")
@dataclass(frozen=True)
class AttentionMixer(Mixer):
    """Multi-head self-attention, the default."""

    @property
    def traits(self) -> MixerTraits:
        return MixerTraits()

    def build(self, sizes: AttentionSettings, place: MixerPlace) -> TokenMixer:  # noqa: ARG002 - the same in every block
        return SelfAttention(sizes)


ATTENTION = AttentionMixer()
