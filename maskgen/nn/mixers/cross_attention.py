"""Multi-head attention to the tokens of another stack (CrossMAE, DiffMAE, captions)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.mixers.attention import AttentionSettings, attend, merge_heads, resolve_backend, split_heads
from maskgen.nn.mixers.base import AttentionMask


class CrossAttention(nn.Module):
    """Attention of (B, M, D) to a memory (B, S, C), without positions.

    Args:
        settings: sizes and options; D is `settings.width`.
        memory_width: C.
    """

    def __init__(self, settings: AttentionSettings, memory_width: int) -> None:
        super().__init__()
        self.settings, self.backend = settings, resolve_backend(settings.backend)
        self.q = nn.Linear(settings.width, settings.inner, bias=settings.qkv_bias)
        self.kv = nn.Linear(memory_width, 2 * settings.kv_inner, bias=settings.qkv_bias)
        self.out = nn.Linear(settings.inner, settings.width, bias=settings.out_bias)
        self.q_norm, self.k_norm = settings.build_qk_norm(settings.inner), settings.build_qk_norm(settings.kv_inner)

    def forward(self, x: Tensor, memory: Tensor, mask: AttentionMask = None) -> Tensor:
        """x (B, M, D), memory (B, S, C) -> (B, M, D); `mask` as `attend` takes it."""
        k, v = self.kv(memory).chunk(2, -1)
        q, k = split_heads(self.settings, self.q(x), self.q_norm), split_heads(self.settings, k, self.k_norm)
        dropout = self.settings.dropout
        v = split_heads(self.settings, v)
        x = merge_heads(attend(q, k, v, self.backend, dropout if self.training else 0.0, mask))
        return F.dropout(self.out(x), dropout, self.training)
