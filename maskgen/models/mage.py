"""MAGE: an encoder over about half of the tokens and a decoder over all, for generation and features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import NULL, Categorical, Condition, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import ConditionKind, NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import RowKind, Tables
from maskgen.nn.decoders import JointDecoder
from maskgen.nn.encoders import VisibleEncoder
from maskgen.nn.heads import MlmHead
from maskgen.nn.initialisation import init_transformer
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.published_blocks import ViTSizes


@MODELS.register("mage")
class Mage(nn.Module):
    """Tokens (B, L) with [MASK] -> Categorical over V tokens (Li et al., arXiv 2211.09117).

    The encoder's input is a class token and the kept tokens; dropped tokens are drawn from the masked ones. In the
    decoder every masked position, dropped or not, holds the encoder's output at the class token.

    Published: B 768 x 12, 12 heads, L 1024 x 24, 16 heads, both with 8 decoder blocks of 16 heads, dropout 0.1 and a
    table of 2,025 rows for 1,024 codes and 256 tokens: 144,896,745 and 407,788,521 parameters.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels of the data, used with `condition: token`.
        width, depth, heads: of the encoder.
        decoder_depth, decoder_heads: of the decoder, which is as wide; 0 heads takes the encoder's.
        mlp_ratio, dropout: of both.
        condition: `none`, the class token is constant (as published); or `token`, it embeds the class, with one more
            row for "no class", so that guidance works.
        table_rows: rows of the token table, 0 for as many as are used; the published one kept room for MaskGIT's
            classes. The output bias has as many.
        projection: width of the vectors of a contrastive loss (MAGE-C), 0 without.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",),
        tokens=("discrete",),
        streams=("image",),
        drops_tokens=True,
        drops_masked=True,
        has_attention_scores=True,
        has_features=True,
    )

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        decoder_depth: int = 4,
        decoder_heads: int = 0,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        condition: Literal["none", "token"] = "none",
        table_rows: int = 0,
        projection: int = 0,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        _require_counts(decoder_heads, table_rows, projection)
        self.vocab_size, self.length = vocab_size, grid[0] * grid[1]
        self.condition = condition if n_classes else "none"
        self.traits = self.traits_for({"condition": self.condition, "projection": projection})
        self.n_classes = n_classes if self.condition == "token" else 0
        used = vocab_size + 2 + self.n_classes  # codes, [MASK], classes, "no class" in one table, as in BERT
        if table_rows and table_rows < used:
            raise ValueError(f"table_rows must be at least {used}, the rows that are used, or 0, got {table_rows}")
        encoder = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention)
        decoder = ViTSizes(width, decoder_depth, decoder_heads or heads, mlp_ratio, dropout, attention)
        self.embedding = nn.Embedding(table_rows or used, width)
        self.positions = nn.Parameter(torch.empty(1 + self.length, width))
        self.embedding_norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.encoder = VisibleEncoder(encoder)
        self.decoder = JointDecoder(width, decoder)
        self.decoder_positions = nn.Parameter(torch.empty(1 + self.length, width))
        self.head = MlmHead(width, self.embedding, vocab_size, 1e-5, False, is_detached=True, activation="gelu")
        self.projection = _projection(width, projection) if projection else None
        init_transformer(self)
        for positions in (self.positions, self.decoder_positions):
            nn.init.trunc_normal_(positions, std=0.02, a=-0.04, b=0.04)

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        conditions: tuple[ConditionKind, ...] = () if keys["condition"] == "none" else ("class",)
        return replace(cls.traits, conditions=conditions, has_projection=keys["projection"] > 0)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that sizes are possible (table rows need a vocabulary), and that two views can be compared.

        Raises:
            ValueError: they are not, or the class token would make the views alike.
        """
        keys = context.model
        try:
            _require_counts(keys["decoder_heads"], keys["table_rows"], keys["projection"])
            ViTSizes.of(keys)
            ViTSizes(keys["width"], keys["decoder_depth"], keys["decoder_heads"] or keys["heads"])
        except ValueError as error:
            raise under("model", error) from None
        if context.has_views and keys["condition"] == "token":
            raise ValueError(
                "model.condition: token gives both views of an image their class, which makes them alike; use none"
            )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the masks determine the time
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
        view: tuple[Tensor, TokenSubset | None] | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        With `subset` the encoder computes kept tokens only; logits are of all positions nonetheless.

        Args:
            view: another view (B, L) of the same images and its kept tokens: encoded, not decoded. The prediction then
                has `vectors` (2, B, P) of both.
        """
        encoded = self.encoder(self._embed(x_t, cond), subset)
        fill = self.decoder.project(encoded[:, :1])
        x = self.decoder(encoded, self.decoder_positions, fill, subset, x_t == self.vocab_size)[:, 1:]
        vectors = None
        if view is not None:
            other, kept = view
            both = (pooled(encoded[:, 1:], subset), pooled(self.encoder(self._embed(other, cond), kept)[:, 1:], kept))
            vectors = self._project(torch.stack(both))
        return Categorical(self.head(x if where is None else x[where]), where, vectors=vectors)

    def tables(self) -> Tables:
        """Rows of the token table and of the head's bias."""
        labels: tuple[RowKind, ...] = ("null",) if self.condition == "none" else ("class", "null")
        rows: tuple[RowKind, ...] = ("token", "mask", *labels, "unused")
        return {"embedding.weight": rows, "head.bias": rows}

    def attention_scores(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, L), attention from the class token to each of the tokens (B, L) in the encoder's last block."""
        return self.encoder.attention_scores(self._embed(x_0, cond))

    def features(self, x_0: Tensor) -> Tensor:
        """Tokens (B, L) int64 -> (B, L, D): the encoder over all of them, without the class token.

        The class token is that of "no class". There is no dropout, in training mode neither.
        """
        was_training = self.training
        self.eval()
        try:
            encoded: Tensor = self.encoder(self._embed(x_0, None), None)[:, 1:]
        finally:
            self.train(was_training)
        return encoded

    def _project(self, x: Tensor) -> Tensor:
        if self.projection is None:
            raise ValueError("model.projection 0 has no vectors for a contrastive loss; set it above 0")
        vectors: Tensor = self.projection(x)
        return vectors

    def _embed(self, x_t: Tensor, cond: Condition | None) -> Tensor:
        """(B, 1 + L, D): the class token, then the tokens."""
        label = labels_of(None if self.condition == "none" else cond, x_t)
        class_row = self.vocab_size + 1 + torch.where(label == NULL, self.n_classes, label)
        x = self.embedding(torch.cat([class_row[:, None], x_t], 1)) + self.positions
        embedded: Tensor = self.dropout(self.embedding_norm(x))
        return embedded


def pooled(x: Tensor, subset: TokenSubset | None) -> Tensor:
    """(B, K, D) -> (B, D): mean over the tokens, padding excluded."""
    if subset is None or subset.valid is None:
        return x.mean(1)
    is_valid = subset.valid[..., None].to(x.dtype)
    return (x * is_valid).sum(1) / is_valid.sum(1)


def _projection(width: int, n_out: int) -> nn.Sequential:
    """The two layers of the contrastive term (section 3.3)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))


def _require_counts(decoder_heads: int, table_rows: int, projection: int) -> None:
    if min(decoder_heads, table_rows, projection) < 0:
        raise ValueError(
            "decoder_heads, table_rows and projection must not be negative, got "
            f"{decoder_heads}, {table_rows} and {projection}"
        )
