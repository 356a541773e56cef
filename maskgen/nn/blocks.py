"""Transformer blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.attention import AttentionBackend, KeyValues, SelfAttention, modulate, zero
from maskgen.nn.checkpointing import Block


class Mlp(nn.Module):
    """Linear - GELU - Linear - dropout over (B, L, D)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, gelu: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = dropout
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.contract(F.gelu(self.expand(x), approximate=self.gelu))
        return F.dropout(x, self.dropout, self.training)


class PostNormBlock(Block):
    """BERT's block: x = LN(x + attention(x)); x = LN(x + mlp(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        backend: AttentionBackend = "auto",
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout, backend=backend)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout, gelu="tanh")
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, modulation: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:  # noqa: ARG002
        x = self.attention_norm(x + self.attention(x, rotation))
        x = self.mlp_norm(x + self.mlp(x))
        return x

    def weights(self, x: Tensor, modulation: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """What `SelfAttention.weights` says of the block's input: x (B, L, D) -> (B, L, L)."""
        return self.attention.weights(x, rotation)


class PreNormBlock(Block):
    """x += attention(LN(x)); x += mlp(LN(x)), with shift, scale and gate from a condition where it is modulated.

    With `is_modulated` the six (B, D) vectors arrive as `modulation` (B, 6 D), DiT's order [shift, scale, gate] twice
    (arXiv 2212.09748, section 3.2); the block's LayerNorms then have no weights of their own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        backend: AttentionBackend = "auto",
        eps: float = 1e-6,
        is_modulated: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.is_modulated = is_modulated
        self.attention_norm = nn.LayerNorm(width, eps=eps, elementwise_affine=not is_modulated)
        self.attention = SelfAttention(width, heads, dropout, qk_norm, backend)
        self.mlp_norm = nn.LayerNorm(width, eps=eps, elementwise_affine=not is_modulated)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor | None = None,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), modulation (B, 6 D), `mask` as `attend` takes it -> (B, L, D)."""
        if modulation is None:
            x = x + self.attention.extend(self.attention_norm(x), rotation, mask)[0]
            x = x + self.mlp(self.mlp_norm(x))
            return x
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, -1)
        x = x + gate_a * self.attention.extend(modulate(self.attention_norm(x), shift_a, scale_a), rotation, mask)[0]
        x = x + gate_m * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m))
        return x

    def weights(self, x: Tensor, modulation: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """What `SelfAttention.weights` says of the block's input: x (B, L, D), modulation (B, 6 D) -> (B, L, L)."""
        x = self.attention_norm(x)
        if modulation is not None:
            shift, scale = modulation[:, None].chunk(6, -1)[:2]
            x = modulate(x, shift, scale)
        return self.attention.weights(x, rotation)


class AdaBlock(Block):
    """DiT's block with adaLN-zero: shift, scale and gate of attention and MLP come from a condition (arXiv 2212.09748).

    The layer that makes them starts at zero, so the block starts as the identity.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        backend: AttentionBackend = "auto",
        cond_width: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm, backend=backend)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio), gelu="tanh")
        self.modulation = nn.Linear(cond_width or width, 6 * width)

    def forward(self, x: Tensor, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), hidden (B, C) -> (B, L, D); `mask` as `attend` takes it."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(hidden)[:, None].chunk(6, -1)
        attended, _ = self.attention.extend(modulate(self.attention_norm(x), shift_a, scale_a), mask=mask)
        x = torch.addcmul(x, gate_a, attended)
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)))


class AdaHead(nn.Module):
    """DiT's last layer: LayerNorm with shift and scale from a condition, then Linear; both layers start at zero.

    With `has_scale` the norm has a weight of its own too (MicroDiT).
    """

    def __init__(self, width: int, n_out: int, cond_width: int | None = None, has_scale: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=has_scale, bias=False)
        self.modulation = nn.Linear(cond_width or width, 2 * width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, L, D), hidden (B, C) -> (B, L, n_out)."""
        shift, scale = self.modulation(hidden)[:, None].chunk(2, -1)
        answer: Tensor = self.out(modulate(self.norm(x), shift, scale))
        return answer


class TextBlock(Block):
    """Pre-norm block of the text networks: no bias in attention and norms, tanh GELU (MDLM, arXiv 2406.07524).

    With `cond_width` > 0 shift, scale and gate come from a condition of that width, by a layer that starts at zero.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        backend: AttentionBackend = "auto",
        cond_width: int = 0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = SelfAttention(width, heads, dropout, qk_norm, backend, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout, gelu="tanh")
        self.modulation = zero(nn.Linear(cond_width, 6 * width)) if cond_width else None

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | Literal["causal"] | None = None,
        cond: Tensor | None = None,
        past: KeyValues | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """x (B, L, D), cond (B, C) -> (B, L, D), and the keys and values of `x`."""
        if self.modulation is None or cond is None:
            attended, new = self.attention.extend(self.attention_norm(x), rotation, mask, past)
            x = x + attended
            return x + self.mlp(self.mlp_norm(x)), new
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(cond)[:, None].chunk(6, -1)
        attended, new = self.attention.extend(modulate(self.attention_norm(x), shift_a, scale_a), rotation, mask, past)
        x = x + gate_a * attended
        return x + gate_m * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)), new
