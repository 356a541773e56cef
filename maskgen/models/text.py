"""The transformer of all text networks: token ids -> hidden vectors -> logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical
from maskgen.core.streams import OUTSIDE
from maskgen.core.traits import NetworkTraits
from maskgen.models.tables import RowKind, Tables
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.initialisation import zero
from maskgen.nn.layers.mlp import ACTIVATIONS
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.base import AttentionMask
from maskgen.nn.mixers.registry import Mixer, MixerPlace
from maskgen.nn.mixers.rotary import RotaryStyle, rotation_1d
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.modulation import modulate
from maskgen.nn.text_block import TextBlockSettings, TextMlp, TextNorm, text_block

TimeKind = Literal["scaled", "sigma", "md4"]
LEAST_ALPHA = 1e-3
"""alpha(1) of the log-linear schedule of MDLM and SEDD."""


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
    attention: AttentionBackend
    mixer: Mixer


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
        attention: `auto`, `sdpa` or `xformers`.
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
    attention: AttentionBackend = "auto"
    mixer: Mixer = ATTENTION

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
        if self.is_tied and (self.embedding_width or self.head_bias):
            raise ValueError("is_tied shares the embedding with the head: use embedding_width 0 and head_bias false")

    @property
    def block(self) -> TextBlockSettings:
        """Settings of a block."""
        hidden = self.mlp_width or int(self.width * self.mlp_ratio)
        return TextBlockSettings(
            self.width, self.heads, hidden, self.n_kv_heads, self.mlp, self.norm, self.norm_eps, self.qkv_bias,
            self.qk_norm, self.rotary, self.dropout, self.attention_dropout, self.attention, self.mixer,
        )  # fmt: skip


class TextTransformer(nn.Module):
    """Token ids, V + 1 of them -> hidden vectors -> logits of V tokens; rotary positions, any length.

    [MASK] is always id V of the input, whatever row of the published tables it has (`mask_row`).

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        has_time: the modulating vector embeds t; else t = 0, a constant.
        grid: (L,), the number of tokens of a row.
        **sizes: see `TextSettings`.
    """

    traits = NetworkTraits(
        tokens=("discrete",), streams=("text",), conditions=(), has_null_label=False, has_fixed_grid=False
    )

    def __init__(
        self, vocab_size: int, has_time: bool = False, grid: tuple[int, ...] = (), **sizes: Unpack[TextSizes]
    ) -> None:
        super().__init__()
        self.settings = settings = TextSettings(**sizes)
        if has_time and not settings.cond_width:
            raise ValueError("has_time needs cond_width above 0, 128 for example; or set has_time false")
        self.vocab_size, self.has_time = vocab_size, has_time
        width, cond_width = settings.width, settings.cond_width
        if settings.mask_row is not None and not 0 <= settings.mask_row < vocab_size:
            raise ValueError(f"mask_row must be below the vocabulary's {vocab_size}, got {settings.mask_row}")
        n_embeddings = vocab_size + int(settings.mask_row is None)
        self.embedding = nn.Embedding(n_embeddings, settings.embedding_width or width)
        self.projection = nn.Linear(settings.embedding_width, width) if settings.embedding_width else None
        self.time = _time_embedding(settings) if cond_width else None
        places = [MixerPlace(math.prod(grid) if grid else 0, layer, settings.depth) for layer in range(settings.depth)]
        self.blocks = nn.ModuleList(text_block(settings.block, cond_width, place) for place in places)
        self.norm = settings.block.build_norm().build(width)
        self.modulation = zero(nn.Linear(cond_width, 2 * width)) if cond_width else None
        self.head: nn.Linear | None = None
        if not settings.is_tied:  # zero: the first loss is ln V
            self.head = zero(nn.Linear(width, vocab_size + int(settings.has_mask_row), bias=settings.head_bias))
        self._init()

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        mixer: Mixer = keys.get("mixer", ATTENTION)
        return mixer.traits.limit(cls.traits)

    def _init(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, part in self.blocks.named_modules():
            if isinstance(part, nn.Linear) and not name.endswith("modulation"):
                nn.init.normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def tables(self) -> Tables:
        """Rows of the embedding and of the head."""
        inputs: tuple[RowKind, ...] = ("token", "mask") if self.settings.mask_row is None else ("token",)
        rows: dict[str, tuple[RowKind, ...]] = {"embedding.weight": inputs}
        if self.head is not None:
            outputs: tuple[RowKind, ...] = ("token", "unused") if self.settings.has_mask_row else ("token",)
            rows |= {f"head.{name}": outputs for name, _ in self.head.named_parameters()}
        return {**rows, "raw_exponents": ("token",)} if self.traits.has_exponents else rows

    def hidden(
        self,
        ids: Tensor,
        t: Tensor,
        mask: AttentionMask = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """ids (B, L), t (B,) -> hidden vectors (B, L, D).

        Args:
            ids: tokens.
            t: times.
            mask: which tokens attend to which; keys of cached tokens come first.
            positions: (L,), or (B, L) if rows differ; None continues after the cached tokens.
            cache: keys and values of the tokens before `ids`; those of `ids` are appended.
        """
        settings = self.settings
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        rotation = rotation_1d(positions, settings.width // settings.heads, settings.rotary_base)
        dropout = settings.dropout if settings.embedding_dropout is None else settings.embedding_dropout
        x, cond = F.dropout(self._embedded(ids), dropout, self.training), self._condition(t)
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x = block(x, cond, rotation=rotation, mask=mask, cache=layer)
        if cache is not None:
            cache.append(ids)
        return x

    def logits(self, x: Tensor, t: Tensor, where: Tensor | None) -> Categorical:
        """Hidden vectors (B, L, D) -> the prediction, at `where` (B, L) only if given."""
        x, cond = self.norm(x), self._condition(t)
        if self.modulation is not None and cond is not None:
            shift, scale = self.modulation(cond)[:, None].chunk(2, -1)
            x = modulate(x, shift, scale)
        if where is not None:
            x = x[where]
        logits, mask_row = self._projected(x), self.settings.mask_row
        if mask_row is not None:
            logits[..., mask_row] = OUTSIDE
        return Categorical(logits, where)

    def _projected(self, x: Tensor) -> Tensor:
        """Normalised vectors (..., D) -> logits (..., V)."""
        if self.head is None:
            return F.linear(x, self.embedding.weight[: self.vocab_size])
        if self.head.out_features == self.vocab_size:
            logits: Tensor = self.head(x)
            return logits
        bias = None if self.head.bias is None else self.head.bias[: self.vocab_size]
        return F.linear(x, self.head.weight[: self.vocab_size], bias)

    def _embedded(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        if self.settings.mask_row is not None:
            ids = torch.where(ids == self.vocab_size, self.settings.mask_row, ids)
        x: Tensor = self.embedding(ids)
        return x if self.projection is None else self.projection(x)

    def _condition(self, t: Tensor) -> Tensor | None:
        """(B, C)"""
        if self.time is None:
            return None
        t = t if self.has_time else torch.zeros_like(t)
        if self.settings.time_embedding == "sigma":
            t = -torch.log1p(-(1 - LEAST_ALPHA) * t)
        return ACTIVATIONS["sigmoid" if self.settings.mlp == "glu" else "silu"](self.time(t))


def _time_embedding(settings: TextSettings) -> TimeEmbedding:
    width = settings.cond_width
    if settings.time_embedding == "md4":
        return TimeEmbedding(width, width, hidden=4 * width, is_inclusive=True)
    return TimeEmbedding(width, scale=1.0 if settings.time_embedding == "sigma" else 1000.0)


def _require_shares(**shares: float | None) -> None:
    """Check dropout rates by name.

    Raises:
        ValueError: one is outside [0, 1).
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share}")
