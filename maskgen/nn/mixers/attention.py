"""Scaled dot-product attention through one function: PyTorch's SDPA, or xformers where it runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.devices import has_cuda
from maskgen.nn.layers.norms import RMS_NORM, Norm
from maskgen.nn.mixers.base import AttentionMask
from maskgen.nn.mixers.biased import BiasedAttention
from maskgen.nn.mixers.rotary import RotaryStyle

AttentionBackend = Literal["auto", "sdpa", "xformers"]


def resolve_backend(backend: AttentionBackend) -> Literal["sdpa", "xformers"]:
    """`auto` is SDPA everywhere; xformers only by name, and only where its kernels run.

    Raises:
        ValueError: xformers without the package, or without CUDA (it has no CPU kernels).
    """
    if backend != "xformers":
        return "sdpa"
    if importlib.util.find_spec("xformers") is None:
        raise ValueError("attention xformers: the package is not installed; pip install maskgen[xformers], or use sdpa")
    if not has_cuda():
        raise ValueError("attention xformers: it has no CPU kernels and this machine has no CUDA; use auto or sdpa")
    return "xformers"


@dataclass(frozen=True)
class QKNorm:
    """Normalisation of queries and keys.

    Args:
        norm: the layer.
        over: `head`, each head's vector after the split (ViT-22B, arXiv 2302.05442); or `width`, all heads together.
    """

    norm: Norm = RMS_NORM
    over: Literal["head", "width"] = "head"


@dataclass(frozen=True)
class AttentionSettings:
    """Sizes and options of an attention layer.

    Args:
        width: D of the tokens.
        heads: H, query heads.
        n_kv_heads: key and value heads, a divisor of H, each shared by H / n_kv_heads query heads (grouped-query
            attention, arXiv 2305.13245); 0 is H.
        head_width: d; 0 is D / H.
        dropout: of the output, and of the attention weights unless `weight_dropout` is given.
        weight_dropout: of the attention weights; None for `dropout`.
        qk_norm: of queries and keys, None for none.
        qkv_bias, out_bias: of the projections.
        rotary: which channels form a pair, see `rotate`.
        backend: see `resolve_backend`.

    Raises:
        ValueError: sizes that do not divide.
    """

    width: int
    heads: int
    n_kv_heads: int = 0
    head_width: int = 0
    dropout: float = 0.0
    qk_norm: QKNorm | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    rotary: RotaryStyle = "interleaved"
    backend: AttentionBackend = "auto"
    weight_dropout: float | None = None

    def __post_init__(self) -> None:
        width, heads = self.width, self.heads
        if width < 1 or heads < 1 or (not self.head_width and width % heads):
            raise ValueError(f"width must be a multiple of heads, both positive, got width {width} and heads {heads}")
        if min(self.n_kv_heads, self.head_width) < 0 or heads % self.kv_heads:
            raise ValueError(f"n_kv_heads must divide heads {heads} or be 0, got {self.n_kv_heads}")

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_heads or self.heads

    @property
    def of_head(self) -> int:
        """d, width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def inner(self) -> int:
        """H d, width of the queries."""
        return self.heads * self.of_head

    @property
    def kv_inner(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.of_head

    def build_qk_norm(self, n_channels: int) -> nn.Module:
        """The norm of queries or of keys that have `n_channels` in all heads; identity without one."""
        if self.qk_norm is None:
            return nn.Identity()
        return self.qk_norm.norm.build(self.of_head if self.qk_norm.over == "head" else n_channels)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: Literal["sdpa", "xformers"],
    dropout: float = 0.0,
    mask: AttentionMask = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; q (B, H, L, d), k and v (B, H_kv, n, d), H a multiple of H_kv -> (B, H, L, d).

    `mask` is `causal` (L = n); or broadcast to (B, H, L, n) bool, True where a query attends to a key, or float, added
    to the scores. A masked call always runs on SDPA.
    """
    if backend == "xformers" and mask is None:
        from xformers.ops import memory_efficient_attention

        k, v = (_repeated(x, q.shape[1]) for x in (k, v))
        out: Tensor = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), p=dropout)
        return out.transpose(1, 2)
    if isinstance(mask, Tensor) and _is_learned_on_cpu(q, mask) and not dropout:
        k, v = (_repeated(x, q.shape[1]) for x in (k, v))
        learned: Tensor = BiasedAttention.apply(q, k, v, mask)
        return learned
    is_causal, is_grouped = isinstance(mask, str), k.shape[1] != q.shape[1]
    bias = mask if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=is_causal, enable_gqa=is_grouped
    )


def split_heads(settings: AttentionSettings, x: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Queries, keys or values (B, L, H d) -> (B, H, L, d), normalised by `norm` over the width or each head."""
    is_wide = settings.qk_norm is not None and settings.qk_norm.over == "width"
    if norm is not None and is_wide:
        x = norm(x).to(x.dtype)
    x = x.unflatten(-1, (-1, settings.of_head)).transpose(1, 2)
    if norm is not None and not is_wide:
        x = norm(x)
    return x


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H d)."""
    return x.transpose(1, 2).flatten(2)


def _is_learned_on_cpu(q: Tensor, mask: Tensor) -> bool:
    return mask.requires_grad and q.device.type == "cpu" and q.dtype == mask.dtype


def _repeated(x: Tensor, heads: int) -> Tensor:
    """(B, H_kv, n, d) -> (B, H, n, d)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
