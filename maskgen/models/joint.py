"""One transformer over rows of several streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.streams import OUTSIDE, Stream, TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.published_blocks import ViTSizes, vit_block


@MODELS.register("joint")
class JointTransformer(nn.Module):
    """Rows of streams (B, L) with [MASK] -> Categorical over the ids of each position's stream.

    An embedding and a head of each stream, one learned position for each token of the row, one transformer over all of
    it. The unified masked models of text and image work so (MMaDA, arXiv 2505.15809; Muddit, 2505.23606; UniF2ace,
    2503.08120), and discrete interpolants over an image and its map (arXiv 2412.06787) with `has_time`.

    Args:
        layout: of the rows; without one, a stream of `vocab_size` ids on `grid`.
        vocab_size: V of all streams.
        grid: of a row of one stream.
        width, depth, heads, mlp_ratio, dropout: the usual sizes.
        has_time: the time of each stream is added to its tokens (explicit time); without, the masks alone determine it.
        qk_norm: RMS-normalised queries and keys of each head.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",),
        tokens=("discrete",),
        has_streams=True,
        conditions=(),
        has_null_label=False,
        drops_tokens=True,
    )

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, ...],
        layout: TokenLayout | None = None,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        has_time: bool = False,
        qk_norm: bool = False,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        sizes = replace(ViTSizes(width, depth, heads, mlp_ratio, dropout, attention).block, qk_norm=qk_norm)
        self.layout = layout or TokenLayout.of(Stream("image", "image", vocab_size, grid))
        streams = self.layout.streams
        self.embeddings = nn.ModuleList(nn.Embedding(stream.vocab_size + 1, width) for stream in streams)
        self.positions = nn.Parameter(torch.empty(self.layout.length, width))
        self.time = TimeEmbedding(width) if has_time else None
        self.blocks = nn.ModuleList(vit_block(sizes.at(layer, depth, self.layout.length)) for layer in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleList(nn.Linear(width, stream.vocab_size) for stream in streams)
        self._init()

    def _init(self) -> None:
        init_transformer(self)
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            zero(head)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - known tokens are the condition
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        Args:
            x_t: rows, [MASK] where masked.
            t: (B,) times of rows, or (B, S) of streams; read with `has_time` only.
            cond: not used.
            subset: only these tokens are computed; logits elsewhere are undefined.
            where: positions to predict.
        """
        x = self._embedded(x_t, t)
        x = x if subset is None else subset.gather(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self._logits(x if subset is None else subset.scatter(x), where)

    def _embedded(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, L, D) of token, position and time."""
        tokens = self.layout.split(x_t).values()
        x: Tensor = (
            torch.cat([embed(part) for embed, part in zip(self.embeddings, tokens, strict=True)], 1) + self.positions
        )
        if self.time is None:
            return x
        times = t[:, None] if t.ndim == 1 else t  # (B, 1) or (B, S)
        added: Tensor = self.time(times.flatten()).unflatten(0, times.shape)
        return x + (added if t.ndim == 1 else added[:, self.layout.stream_ids(x.device)])

    def _logits(self, x: Tensor, where: Tensor | None) -> Categorical:
        """Outputs of each stream's head, among the ids of all streams."""
        if where is None:
            parts = zip(self.heads, self.layout.parts(x).items(), strict=True)
            return Categorical(self.layout.join_logits({name: head(part) for head, (name, part) in parts}))
        place = torch.arange(where.numel(), device=x.device).view(where.shape)
        found, order, first = [], [], 0
        for head, stream, own in zip(self.heads, self.layout.streams, self.layout.places, strict=True):
            after = self.layout.vocab_size - first - stream.vocab_size
            logits = head(x[:, own][where[:, own]])
            found.append(F.pad(logits, (first, after), value=OUTSIDE) if first or after else logits)
            order.append(place[:, own][where[:, own]])
            first += stream.vocab_size
        # streams one after the other, back in the order of the rows
        return Categorical(torch.cat(found)[torch.cat(order).argsort()] if len(found) > 1 else found[0], where)

    def tables(self) -> dict[str, tuple[Any, ...]]:
        """Tables of a row of one stream; several have a vocabulary of their own each."""
        if len(self.layout.streams) > 1:
            return {}
        return {
            "embeddings.0.weight": ("token", "mask"), "heads.0.weight": ("token",), "heads.0.bias": ("token",),
        }  # fmt: skip
