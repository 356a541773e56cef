"""Attention through one function: PyTorch's SDPA, or xformers where it runs."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.devices import has_cuda
from maskgen.nn.biased import BiasedAttention
from maskgen.nn.embeddings import rotate

AttentionBackend = Literal["auto", "sdpa", "xformers"]


def resolve_backend(wanted: AttentionBackend) -> Literal["sdpa", "xformers"]:
    """`auto` is SDPA everywhere; xformers only by name, and only where its kernels run.

    Raises:
        ValueError: xformers asked for without the package, or without CUDA (it has no CPU kernels).
    """
    if wanted != "xformers":
        return "sdpa"
    if importlib.util.find_spec("xformers") is None:
        raise ValueError("attention xformers: the package is not installed; pip install maskgen[xformers], or use sdpa")
    if not has_cuda():
        raise ValueError("attention xformers: it has no CPU kernels and this machine has no CUDA; use auto or sdpa")
    return "xformers"


KeyValues = tuple[Tensor, Tensor]
"""Keys and values, (B, H, n, d) each, turned to their positions."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: Literal["sdpa", "xformers"],
    dropout: float = 0.0,
    mask: Tensor | Literal["causal"] | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; q (B, H, L, d), k and v (B, H, n, d).

    `mask` is `causal`; or broadcast to (B, H, L, n) bool, True where a query may look, or float, added to the scores. A
    masked call always runs on SDPA.
    """
    if backend == "xformers" and mask is None:
        from xformers.ops import memory_efficient_attention

        out: Tensor = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), p=dropout)
        return out.transpose(1, 2)
    if (
        isinstance(mask, Tensor)
        and mask.requires_grad
        and q.device.type == "cpu"
        and q.dtype == mask.dtype
        and not dropout
    ):
        learned: Tensor = BiasedAttention.apply(q, k, v, mask)
        return learned
    if isinstance(mask, Tensor) or mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, L, D).

    Args:
        width: D.
        heads: H, a divisor of D.
        dropout: of the attention weights and of the output.
        qk_norm: RMS normalisation of queries and keys in each head.
        backend: see `resolve_backend`.
        bias: of both projections.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        qk_norm: bool = False,
        backend: AttentionBackend = "auto",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, both positive, got width {width} and heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.backend = resolve_backend(backend)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.q_norm = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); `rotation` as `embeddings.rotation_2d` makes it, (L, d/2) or (B, L, d/2) complex."""
        return self.extend(x, rotation)[0]

    def extend(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | Literal["causal"] | None = None,
        past: KeyValues | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Attention of x (B, L, D) to `past` and itself under `mask`, and the keys and values of `x` alone."""
        q, k, v = self._parts(x, rotation)
        new = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = attend(q, k, v, self.backend, self.dropout if self.training else 0.0, mask).transpose(1, 2).flatten(2)
        return F.dropout(self.out(x), self.dropout, self.training), new

    def weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, L): the share of its attention that each token gives to each, mean over the heads."""
        q, k, _ = self._parts(x, rotation)
        given: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        return given

    def _parts(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, L, d), turned to their positions."""
        # Cut along D, so that the backward pass joins the three gradients in one copy.
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: weights truncated normal(0, std) cut at two deviations, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero: an adaLN gate that starts closed."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift; x (B, L, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)
