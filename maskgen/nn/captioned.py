"""Blocks that look at captions, and what prepares captions for them (MicroDiT, arXiv 2407.15811)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.attention import AttentionBackend, attend, modulate, resolve_backend
from maskgen.nn.checkpointing import Block
from maskgen.nn.moe import ExpertChoice, SwiGLU

EPS = 1e-6


class WideNormAttention(nn.Module):
    """Attention without bias whose inner width is free, queries and keys normalised over all heads together.

    Args:
        width: D.
        inner: width of queries, keys and values, a multiple of `heads`.
        heads: H.
        backend: see `resolve_backend`.
    """

    def __init__(self, width: int, inner: int, heads: int, backend: AttentionBackend = "auto") -> None:
        super().__init__()
        if heads < 1 or inner < 1 or inner % heads:
            raise ValueError(f"inner must be a multiple of heads, both positive, got {inner} and {heads}")
        self.inner, self.heads, self.backend = inner, heads, resolve_backend(backend)
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, L, D) looks at `context` (B, S, D), at itself without one -> (B, L, D)."""
        k, v = self.kv(x if context is None else context).chunk(2, -1)
        # Not of each head alone: a head may be silent for a token.
        q, k = (F.layer_norm(part, (self.inner,), eps=EPS).to(v.dtype) for part in (self.q(x), k))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        answer: Tensor = self.out(attend(q, k, v, self.backend).transpose(1, 2).flatten(2))
        return answer

    def init(self, std: float) -> None:
        """Queries, keys and values of deviation 0.02, what writes of deviation `std`."""
        for layer in (self.q, self.kv):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=std)


@dataclass(frozen=True)
class BlockSizes:
    """Of a `CaptionedBlock`.

    Attributes:
        width: D.
        inner: width of self-attention.
        head_width: of a head; divides `inner` and `width`.
        hidden: of the feed-forward layer, or of each expert.
        n_experts, capacity: of an `ExpertChoice`; 0 experts is a dense `SwiGLU`.
        cond_width: C, width of the condition.
        has_captions: whether it attends to captions.
        init_std: deviation of the weights that write to the tokens.
        backend: of attention.
    """

    width: int
    inner: int
    head_width: int
    hidden: int
    n_experts: int
    capacity: float
    cond_width: int
    has_captions: bool
    init_std: float
    backend: AttentionBackend


class CaptionedBlock(Block):
    """Self-attention and feed-forward layer with adaLN-zero as in DiT, cross-attention to captions, not gated, between.

    Its layer of shifts, scales and gates starts at zero, as `init` leaves it: only captions then change the tokens.
    """

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        self.init_std = sizes.init_std
        self.attention_norm, self.mlp_norm = _norm(sizes.width), _norm(sizes.width)
        self.attention = WideNormAttention(sizes.width, sizes.inner, sizes.inner // sizes.head_width, sizes.backend)
        self.caption_norm = _norm(sizes.width) if sizes.has_captions else None
        self.caption_attention = None
        if sizes.has_captions:
            heads = sizes.width // sizes.head_width
            self.caption_attention = WideNormAttention(sizes.width, sizes.width, heads, sizes.backend)
        self.mlp: SwiGLU | ExpertChoice = (
            ExpertChoice(sizes.width, sizes.hidden, sizes.n_experts, sizes.capacity)
            if sizes.n_experts
            else SwiGLU(sizes.width, sizes.hidden)
        )
        self.modulation = nn.Linear(sizes.cond_width, 6 * sizes.width)
        self.init()

    def init(self) -> None:
        for part in (self.attention, self.caption_attention, self.mlp):
            if part is not None:
                part.init(self.init_std)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, hidden: Tensor, captions: Tensor | None) -> Tensor:
        """x (B, L, D), hidden (B, C) after its activation, captions (B, S, D) -> (B, L, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(hidden)[:, None].chunk(6, -1)
        x = torch.addcmul(x, gate_a, self.attention(modulate(self.attention_norm(x), shift_a, scale_a)))
        if self.caption_attention is not None and self.caption_norm is not None:
            x = x + self.caption_attention(self.caption_norm(x), captions)
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)))


class CaptionEncoder(nn.Module):
    """Embedded captions -> tokens to attend to, and one vector: an MLP, an attention block, a mean with an MLP.

    Args:
        caption_width: C, of the text encoder.
        width: D.
        heads: of the attention block.
        hidden: of its feed-forward layer.
        backend: see `resolve_backend`.
    """

    def __init__(
        self, caption_width: int, width: int, heads: int, hidden: int, backend: AttentionBackend = "auto"
    ) -> None:
        super().__init__()
        self.project = _mlp(caption_width, width)
        self.attention_norm, self.mlp_norm = _norm(width), _norm(width)
        self.attention = WideNormAttention(width, width, heads, backend)
        self.mlp = SwiGLU(width, hidden)
        self.pool = _mlp(width, width)
        self.init()

    def init(self) -> None:
        """The attention block starts as the identity."""
        for part in (*self.project, *self.pool):
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.attention.init(0.02)
        self.mlp.init(0.02)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.mlp.contract.weight)

    def forward(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> (B, S, D) and (B, D)."""
        x = self.project(captions)
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x, self.pool(x.mean(1))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPS, bias=False)


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.GELU("tanh"), _norm(width), nn.Linear(width, width))
