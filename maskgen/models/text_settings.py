"""Sizes and options of text networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.layers.routed import ExpertSettings
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.rotary import RotaryStyle
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.text_block import TextBlockSettings, TextMlp, TextNorm

TimeKind = Literal["scaled", "sigma", "md4"]


class TextSizes(TypedDict, total=False):
    """Recipe keys that all text networks share, see `TextSettings`."""

    width: int
    depth: int
    heads: int
    n_kv_heads: int
    mlp_ratio: float
    mlp_width: int
    mlp: TextMlp
    norm: TextNorm
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    dropout: float
    embedding_dropout: float | None
    attention_dropout: float | None
    cond_width: int
    time_embedding: TimeKind
    embedding_width: int
    mask_row: int | None
    has_mask_row: bool
    head_bias: bool
    is_tied: bool
    rotary: RotaryStyle
    rotary_base: float
    rotary_share: float
    attention: AttentionBackend
    mixer: Mixer
    qk_norm_eps: float | None
    experts: ExpertSettings | None


@dataclass(frozen=True)
class TextSettings:
    """Sizes and options of a text network.

    Args:
        width, depth, heads: D, number of blocks, attention heads.
        n_kv_heads: key and value heads, each shared by several query heads (grouped-query attention); 0 is `heads`.
        mlp_ratio: width of the feed-forward layer over D, unless `mlp_width` is given.
        mlp_width: width of the feed-forward layer; 0 for `mlp_ratio`.
        mlp: `gelu`, a plain one with biases (MDLM); `swiglu`, `geglu` and `glu`, gated by SiLU (LLaDA, Dream), GELU and
            sigmoid. With `glu` the sigmoid also replaces the SiLU before the modulations (MD4).
        norm: `layer`, with a weight (MDLM); `rms`, with a weight (LLaDA, Dream); `plain`, without one (MD4).
        norm_eps: added to the variance.
        qkv_bias: biases of queries, keys and values (Dream).
        qk_norm: RMS-normalised queries and keys.
        qk_norm_eps: added to their mean square; null for the machine epsilon.
        dropout: of the outputs of attention and MLP, and of embeddings and attention weights unless these are given.
        embedding_dropout, attention_dropout: of embeddings and of attention weights; null for `dropout`. MDLM has 0.
        cond_width: width of the vector that modulates the blocks (adaLN); 0 is none.
        time_embedding: what a time-conditioned network embeds: `scaled`, 1000 t; `sigma`, -log(1 - 0.999 t), the total
            noise of the log-linear schedule (MDLM, SEDD); `md4`, 1000 t by MD4's frequencies and a layer four times as
            wide.
        embedding_width: width of token embeddings, which a linear layer maps to D (MD4); 0 is D.
        mask_row: id within the vocabulary whose row of the embedding [MASK], V, has, and which is never predicted; null
            adds row V (LLaDA 126336, Dream 151666).
        has_mask_row: the head has an unused row for [MASK], as in the public checkpoints of MDLM.
        head_bias: bias of the logits.
        is_tied: logits use the embedding.
        rotary: which channels form a pair, `interleaved` or `half`.
        rotary_base: ratio of the slowest to the fastest rotary angle, about; 10,000 as published, less for short texts.
        rotary_share: share of the channels of a head that are rotated, the first ones (LLaDA2: 0.5).
        attention: `auto`, `sdpa` or `xformers`.
        experts: a mixture of experts in place of the feed-forward layers after the first, see `ExpertSettings`; needs
            mlp swiglu. Null for none.
        mixer: how tokens are mixed, `attention` or another of `MIXERS`; some are for rows of one length, `grid`.

    Raises:
        ValueError: sizes that are not possible.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    n_kv_heads: int = 0
    mlp_ratio: float = 4.0
    mlp_width: int = 0
    mlp: TextMlp = "gelu"
    norm: TextNorm = "layer"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    dropout: float = 0.0
    embedding_dropout: float | None = None
    attention_dropout: float | None = None
    cond_width: int = 0
    time_embedding: TimeKind = "scaled"
    embedding_width: int = 0
    mask_row: int | None = None
    has_mask_row: bool = False
    head_bias: bool = True
    is_tied: bool = False
    rotary: RotaryStyle = "interleaved"
    rotary_base: float = 10_000.0
    rotary_share: float = 1.0
    attention: AttentionBackend = "auto"
    mixer: Mixer = ATTENTION
    qk_norm_eps: float | None = None
    experts: ExpertSettings | None = None

    def __post_init__(self) -> None:
        width, depth, heads, dropout = self.width, self.depth, self.heads, self.dropout
        if min(width, depth, heads) < 1 or not self.mlp_ratio > 0 or not 0 <= dropout < 1 or self.cond_width < 0:
            raise ValueError(
                "width, depth, heads and mlp_ratio must be positive, dropout in [0, 1) and cond_width at least 0, got "
                f"{width}, {depth}, {heads}, {self.mlp_ratio}, {dropout} and {self.cond_width}"
            )
        _require_shares(embedding_dropout=self.embedding_dropout, attention_dropout=self.attention_dropout)
        for name in ("mlp_width", "embedding_width"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must be at least 0, got {vars(self)[name]}")
        if not self.rotary_base > 1:
            raise ValueError(f"rotary_base must be above 1, got {self.rotary_base}")
        if not 0 < self.rotary_share <= 1:
            raise ValueError(f"rotary_share must be in (0, 1], got {self.rotary_share}")
        if self.experts is not None and self.mlp != "swiglu":
            raise ValueError(f"experts are SwiGLU: use mlp swiglu, got {self.mlp}")
        if self.is_tied and (self.embedding_width or self.head_bias):
            raise ValueError("is_tied shares the embedding with the head: use embedding_width 0 and head_bias false")

    @property
    def block(self) -> TextBlockSettings:
        """Settings of a block."""
        hidden = self.mlp_width or int(self.width * self.mlp_ratio)
        return TextBlockSettings(
            self.width, self.heads, hidden, self.n_kv_heads, self.mlp, self.norm, self.norm_eps, self.qkv_bias,
            self.qk_norm, self.rotary, self.dropout, self.attention_dropout, self.attention, self.mixer,
            self.qk_norm_eps, self.experts,
        )  # fmt: skip

    def build_time(self) -> TimeEmbedding | None:
        """The embedding of times, None without a condition."""
        width = self.cond_width
        if not width:
            return None
        if self.time_embedding == "md4":
            return TimeEmbedding(width, width, hidden=4 * width, is_inclusive=True)
        return TimeEmbedding(width, scale=1.0 if self.time_embedding == "sigma" else 1000.0)


def _require_shares(**shares: float | None) -> None:
    """Check dropout rates by name.

    Raises:
        ValueError: one is outside [0, 1).
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share}")
