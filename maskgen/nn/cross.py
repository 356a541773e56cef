"""Blocks that look at tokens of another stack: decoders by cross-attention (CrossMAE, DiffMAE)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.attention import AttentionBackend, SelfAttention, attend, resolve_backend
from maskgen.nn.blocks import Mlp
from maskgen.nn.checkpointing import Block
from maskgen.nn.visible import ViTSizes


class CrossAttention(nn.Module):
    """Multi-head attention of (B, M, D) to a memory (B, S, C).

    Args:
        width: D.
        memory_width: C.
        heads: H, a divisor of D.
        dropout: of the attention weights and of the output.
        backend: see `resolve_backend`.
    """

    def __init__(
        self, width: int, memory_width: int, heads: int, dropout: float = 0.0, backend: AttentionBackend = "auto"
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, both positive, got width {width} and heads {heads}")
        self.heads, self.dropout, self.backend = heads, dropout, resolve_backend(backend)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, M, D), memory (B, S, C) -> (B, M, D); `mask` as `attend` takes it."""
        parts = (self.q(x), *self.kv(memory).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, v, self.backend, dropout, mask).transpose(1, 2).flatten(2)
        return F.dropout(self.out(x), self.dropout, self.training)


class CrossBlock(Block):
    """x += cross-attention to a memory; then, if `looks_around`, x += self-attention; x += mlp; all pre-norm.

    Args:
        sizes: of the block; its depth does not matter.
        memory_width: C.
        looks_around: whether tokens see each other (DiffMAE's cross-self block) or the memory alone (CrossMAE).
    """

    def __init__(self, sizes: ViTSizes, memory_width: int, looks_around: bool) -> None:
        super().__init__()
        width = sizes.width
        self.cross_norm = nn.LayerNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, memory_width, sizes.heads, sizes.dropout, sizes.backend)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6) if looks_around else None
        self.attention = (
            SelfAttention(width, sizes.heads, sizes.dropout, backend=sizes.backend) if looks_around else None
        )
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * sizes.mlp_ratio), sizes.dropout)

    def forward(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None, own_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, M, D), memory (B, S, C) -> (B, M, D); masks as `attend` takes them, of the memory and of x itself."""
        x = x + self.cross(self.cross_norm(x), memory, memory_mask)
        if self.attention is not None and self.attention_norm is not None:
            x = x + self.attention.extend(self.attention_norm(x), mask=own_mask)[0]
        answer: Tensor = x + self.mlp(self.mlp_norm(x))
        return answer
