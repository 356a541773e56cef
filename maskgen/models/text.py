"""The transformer of all text networks: token ids -> hidden vectors -> logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.streams import OUTSIDE
from maskgen.core.traits import NetworkTraits
from maskgen.models.tables import RowKind, Tables
from maskgen.models.text_settings import TextSettings, TextSizes
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.initialisation import zero
from maskgen.nn.layers.mlp import ACTIVATIONS
from maskgen.nn.mixers.base import AttentionMask
from maskgen.nn.mixers.registry import Mixer, MixerPlace
from maskgen.nn.mixers.rotary import rotation_1d
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.modulation import modulate
from maskgen.nn.patterns import AttentionPattern, FullAttention
from maskgen.nn.text_block import text_block

LEAST_ALPHA = 1e-3
"""alpha(1) of the log-linear schedule of MDLM and SEDD."""


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
        tokens=("discrete",),
        streams=("text",),
        conditions=(),
        has_null_label=False,
        has_fixed_grid=False,
        has_features=True,
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
        self.time = settings.build_time()
        length = math.prod(grid) if grid else 0
        places = (MixerPlace(length, layer, settings.depth) for layer in range(settings.depth))
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
        x, rotation = self.placed(self._projected(self._vectors(ids)), positions)
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
        settings = self.settings
        dropout = settings.dropout if settings.embedding_dropout is None else settings.embedding_dropout
        x = F.dropout(x, dropout, self.training)
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
        return self.features_of(self._vectors(self.inputs(x_0)))

    def features_of(self, vectors: Tensor) -> Tensor:
        """`features` of the embeddings (B, L, D) of a network's inputs, which need not be those of tokens."""
        n_rows, length = vectors.shape[:2]
        x, rotation = self.placed(self._projected(vectors), torch.arange(length, device=vectors.device))
        vector = self.condition(torch.zeros(n_rows, device=vectors.device))
        return self._through(x, vector, rotation, self.pattern.mask(length, x.device))

    def placed(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings x (B, L, D) at positions (L,) or (B, L) -> what enters the blocks, and the rotation there."""
        settings = self.settings
        n_rotated = int(settings.width // settings.heads * settings.rotary_share)
        return x, rotation_1d(positions, n_rotated, settings.rotary_base)

    def logits(self, x: Tensor, t: Tensor, where: Tensor | None, cond: Condition | None = None) -> Categorical:
        """Hidden vectors (B, L, D) -> the prediction, at `where` (B, L) only if given."""
        x, vector = self.norm(x), self.condition(t, cond)
        if self.modulation is not None and vector is not None:
            shift, scale = self.modulation(vector)[:, None].chunk(2, -1)
            x = modulate(x, shift, scale)
        logits, mask_row = self._scores(x if where is None else x[where]), self.settings.mask_row
        if mask_row is not None:
            logits[..., mask_row] = OUTSIDE
        return Categorical(logits, where)

    def _scores(self, x: Tensor) -> Tensor:
        """Normalised vectors (..., D) -> logits (..., V)."""
        if self.head is None:
            return F.linear(x, self.embedding.weight[: self.vocab_size])
        if self.head.out_features == self.vocab_size:
            logits: Tensor = self.head(x)
            return logits
        bias = None if self.head.bias is None else self.head.bias[: self.vocab_size]
        return F.linear(x, self.head.weight[: self.vocab_size], bias)

    def _vectors(self, ids: Tensor) -> Tensor:
        """(B, L) -> rows of the embedding."""
        if self.settings.mask_row is not None:
            ids = torch.where(ids == self.vocab_size, self.settings.mask_row, ids)
        vectors: Tensor = self.embedding(ids)
        return vectors

    def _projected(self, vectors: Tensor) -> Tensor:
        """Rows of the embedding -> (B, L, D)."""
        return vectors if self.projection is None else self.projection(vectors)

    def condition(self, t: Tensor, cond: Condition | None = None) -> Tensor | None:  # noqa: ARG002 - text has no classes
        """The vector (B, C) that modulates blocks and output at times t (B,); None without."""
        if self.time is None:
            return None
        t = t if self.has_time else torch.zeros_like(t)
        if self.settings.time_embedding == "sigma":
            t = -torch.log1p(-(1 - LEAST_ALPHA) * t)
        return ACTIVATIONS["sigmoid" if self.settings.mlp == "glu" else "silu"](self.time(t))
