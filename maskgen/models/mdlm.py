"""Transformers over text: masked diffusion (MDLM, MD4), and the base of block diffusion and autoregression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import RowKind, Tables
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.initialisation import zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.base import AttentionMask
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.rotary import rotation_1d
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.modulation import modulate
from maskgen.nn.patterns import AttentionPattern, FullAttention, packed
from maskgen.nn.published_blocks import BlockSizes, text_block


class TextSizes(TypedDict, total=False):
    """Recipe keys that all text networks share, see `TextTransformer`."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    dropout: float
    embedding_dropout: float | None
    attention_dropout: float | None
    cond_width: int
    qk_norm: bool
    has_mask_row: bool
    rotary_base: float
    attention: AttentionBackend
    mixer: Mixer


class TextTransformer(nn.Module):
    """Token ids, V + 1 of them -> hidden vectors -> logits of V tokens; rotary positions, any length.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        width, depth, heads, mlp_ratio: the usual sizes.
        dropout: of the outputs of attention and MLP, and of embeddings and attention weights unless these are given.
        embedding_dropout, attention_dropout: of embeddings and of attention weights; null for `dropout`. MDLM has 0.
        cond_width: width of the vector that modulates the blocks (adaLN); 0 is none.
        has_time: the vector embeds t; else t = 0, a constant.
        qk_norm: RMS-normalised queries and keys.
        has_mask_row: the head has an unused row for [MASK], as in the public checkpoints.
        rotary_base: ratio of the slowest to the fastest rotary angle, about; 10,000 as published, less for short texts.
        attention: `auto`, `sdpa` or `xformers`.
        mixer: how tokens are mixed, `attention` or another of `MIXERS`; some are for rows of one length, `grid`.
        grid: (L,), the number of tokens of a row.
    """

    traits = NetworkTraits(
        tokens=("discrete",),
        streams=("text",),
        conditions=(),
        has_null_label=False,
        has_fixed_grid=False,
        has_features=True,
    )

    def __init__(
        self,
        vocab_size: int,
        has_time: bool = False,
        *,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        attention_dropout: float | None = None,
        cond_width: int = 0,
        qk_norm: bool = False,
        has_mask_row: bool = False,
        rotary_base: float = 10_000.0,
        attention: AttentionBackend = "auto",
        mixer: Mixer = ATTENTION,
        grid: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        _require_sizes(width, depth, heads, mlp_ratio, dropout, cond_width)
        if not rotary_base > 1:
            raise ValueError(f"rotary_base must be above 1, got {rotary_base}")
        _require_shares(embedding_dropout=embedding_dropout, attention_dropout=attention_dropout)
        if has_time and not cond_width:
            raise ValueError("has_time needs cond_width above 0, 128 for example; or set has_time false")
        self.vocab_size, self.has_time = vocab_size, has_time
        self.head_width, self.rotary_base = width // heads, rotary_base
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.time = TimeEmbedding(cond_width) if cond_width else None
        self.dropout = dropout if embedding_dropout is None else embedding_dropout
        sizes = BlockSizes(width, heads, mlp_ratio, dropout, attention, qk_norm, attention_dropout, mixer)
        length = math.prod(grid) if grid else 0
        self.blocks = nn.ModuleList(text_block(sizes.at(layer, depth, length), cond_width) for layer in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.modulation = zero(nn.Linear(cond_width, 2 * width)) if cond_width else None
        self.head = zero(nn.Linear(width, vocab_size + int(has_mask_row)))  # zero: the first loss is ln V
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
        outputs: tuple[RowKind, ...] = ("token",) if self.head.out_features == self.vocab_size else ("token", "unused")
        rows: Tables = {"embedding.weight": ("token", "mask"), "head.weight": outputs, "head.bias": outputs}
        return {**rows, "raw_exponents": ("token",)} if self.traits.has_exponents else rows

    def hidden(
        self,
        ids: Tensor,
        t: Tensor,
        mask: AttentionMask = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        cond: Condition | None = None,
    ) -> Tensor:
        """ids (B, L), t (B,) -> hidden vectors (B, L, D).

        Args:
            ids: tokens.
            t: times.
            mask: which tokens attend to which; keys of cached tokens come first.
            positions: (L,), or (B, L) if rows differ; None continues after the cached tokens.
            cache: keys and values of the tokens before `ids`; those of `ids` are appended.
            cond: of a network with classes.
        """
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        x, rotation = self.placed(self.embedding(ids), positions)
        x = self._through(x, self.condition(t, cond), rotation, mask, cache)
        if cache is not None:
            cache.append(ids)
        return x

    def _through(
        self,
        x: Tensor,
        vector: Tensor | None,
        rotation: Tensor | None,
        mask: AttentionMask,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Embeddings (B, L, D) -> hidden vectors."""
        x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x = block(x, vector, rotation=rotation, mask=mask, cache=layer)
        return x

    @property
    def pattern(self) -> AttentionPattern:
        """Which tokens attend to which outside training."""
        return FullAttention()

    def inputs(self, x_t: Tensor) -> Tensor:
        """(B, L) ids whose hidden vector i predicts token i."""
        return x_t

    def features(self, x_0: Tensor) -> Tensor:
        """Texts x_0 (B, L) int64 -> what all blocks make of them, (B, L, D), before the last norm."""
        return self.features_of(self.embedding(self.inputs(x_0)))

    def features_of(self, vectors: Tensor) -> Tensor:
        """`features` of the embeddings (B, L, D) of a network's inputs, which need not be those of tokens."""
        n_rows, length = vectors.shape[:2]
        x, rotation = self.placed(vectors, torch.arange(length, device=vectors.device))
        vector = self.condition(torch.zeros(n_rows, device=vectors.device))
        return self._through(x, vector, rotation, self.pattern.mask(length, x.device))

    def placed(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings x (B, L, D) at positions (L,) or (B, L) -> what enters the blocks, and the rotation there."""
        return x, rotation_1d(positions, self.head_width, self.rotary_base)

    def logits(self, x: Tensor, t: Tensor, where: Tensor | None, cond: Condition | None = None) -> Categorical:
        """Hidden vectors (B, L, D) -> the prediction, at `where` (B, L) only if given."""
        x, vector = self.norm(x), self.condition(t, cond)
        if self.modulation is not None and vector is not None:
            shift, scale = self.modulation(vector)[:, None].chunk(2, -1)
            x = modulate(x, shift, scale)
        if where is not None:
            x = x[where]
        if self.head.out_features == self.vocab_size:
            return Categorical(self.head(x), where)
        return Categorical(F.linear(x, self.head.weight[: self.vocab_size], self.head.bias[: self.vocab_size]), where)

    def condition(self, t: Tensor, cond: Condition | None = None) -> Tensor | None:  # noqa: ARG002 - text has no classes
        """The vector (B, C) that modulates blocks and output at times t (B,); None without."""
        if self.time is None:
            return None
        return F.silu(self.time(t if self.has_time else torch.zeros_like(t)))


def _require_sizes(width: int, depth: int, heads: int, mlp_ratio: float, dropout: float, cond_width: int) -> None:
    """Check sizes.

    Raises:
        ValueError: one is not possible.
    """
    if min(width, depth, heads) < 1 or not mlp_ratio > 0 or not 0 <= dropout < 1 or cond_width < 0:
        raise ValueError(
            "width, depth, heads and mlp_ratio must be positive, dropout in [0, 1) and cond_width at least 0, got "
            f"{width}, {depth}, {heads}, {mlp_ratio}, {dropout} and {cond_width}"
        )


def _require_shares(**shares: float | None) -> None:
    """Check dropout rates by name.

    Raises:
        ValueError: one is outside [0, 1).
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share}")


@MODELS.register("mdlm")
class MDLM(TextTransformer):
    """Bidirectional denoiser of text (MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329).

    The published small network is `width: 768, depth: 12, heads: 12, cond_width: 128, has_mask_row: true`:
    169,627,218 parameters with GPT-2's 50,257 tokens and [MASK].

    Args:
        has_time: see `TextTransformer`.
        has_exponents: one learned exponent a token, for the objective `state_dependent` (GenMD4).
        grid: see `TextTransformer`.
        **sizes: see `TextTransformer`.
    """

    traits = replace(
        TextTransformer.traits,
        objectives=("masked_tokens", "state_dependent"),
        drops_tokens=True,
        takes_documents=True,
    )

    def __init__(
        self,
        vocab_size: int,
        has_time: bool = False,
        has_exponents: bool = False,
        grid: tuple[int, ...] = (),
        **sizes: Unpack[TextSizes],
    ) -> None:
        super().__init__(vocab_size, has_time, grid=grid, **sizes)
        self.traits = self.traits_for({"has_exponents": has_exponents, **sizes})
        if has_exponents:
            self.raw_exponents = nn.Parameter(torch.full((vocab_size,), math.log(math.e - 1)))

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        return replace(super().traits_for(keys), has_exponents=bool(keys["has_exponents"]))

    @property
    def exponents(self) -> Tensor | None:
        """(V,) w of the schedule alpha = 1 - t^w, 1 at the start; None without them."""
        return F.softplus(self.raw_exponents) if self.traits.has_exponents else None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        Args:
            x_t: tokens, [MASK] where masked.
            t: (B,) times, read with `has_time` only.
            cond: not used.
            subset: only these tokens are computed; logits elsewhere are undefined.
            where: positions to predict.
            valid: (B, L) bool, False for padding: no token attends to it, and its logits are undefined.
            documents: (B, L) int64; a token attends to its own document only.
        """
        mask = packed(valid, documents).mask(x_t.shape[1], x_t.device)
        if subset is None:
            return self.logits(self.hidden(x_t, t, mask), t, where)
        if mask is not None:
            raise ValueError("dropped tokens do not go with valid or documents; use keep_ratio 1")
        x = self.hidden(subset.gather(x_t), t, positions=subset.keep)
        return self.logits(subset.scatter(x), t, where)
