"""M2T: a transformer that predicts the groups of a fixed plan in turn, all of them in one training pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.groups import FixedOrder, GroupPlan
from maskgen.core.predictions import NULL, Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.nn.cache import KeyValueCache
from maskgen.nn.embeddings import LabelEmbedding
from maskgen.nn.heads import MlmHead
from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.patterns import GroupCausal
from maskgen.nn.published_blocks import ViTSizes, vit_block


@MODELS.register("m2t")
class M2T(nn.Module):
    """Tokens (B, L) -> Categorical of each token given the groups before its own (M2T, arXiv 2304.07313, section 3.2).

    The input is a row of slots, group by group. The slots of group i hold the tokens of group i - 1, filled up with
    [MASK] to the size of group i, and predict the tokens of group i; a slot attends to its own group and the groups
    before it. So one pass gives -log p of all tokens exactly. S = L groups in raster order are an autoregressive
    model, S = 1 predicts all tokens independently. A slot has two positions, of the token that it shows and of the
    token that it predicts (a choice of this implementation: the paper does not name one).

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) or (L,) of the tokens.
        n_classes: labels, which modulate the blocks (adaLN); 0 for an unconditional network.
        order, n_groups, alpha: see `GroupPlan`.
        width, depth, heads, mlp_ratio, dropout: the usual sizes.
        qk_norm: RMS-normalised queries and keys.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(objectives=("next_token",), tokens=("discrete",), streams=("image",), has_cache=True)

    predicted: Tensor
    shown: Tensor

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, ...],
        n_classes: int = 0,
        order: FixedOrder = "qlds",
        n_groups: int = 12,
        alpha: float = 2.2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        qk_norm: bool = False,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        self.plan = GroupPlan(grid, order, n_groups, alpha)
        self.traits = replace(self.traits, groups=self.plan, conditions=("class",) if n_classes else ())
        self.vocab_size, self.pattern = vocab_size, GroupCausal(self.plan.sizes)
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.shown_positions = nn.Parameter(torch.empty(self.plan.length + 1, width))
        self.positions = nn.Parameter(torch.empty(self.plan.length, width))
        self.dropout = nn.Dropout(dropout)
        block = replace(ViTSizes(width, depth, heads, mlp_ratio, dropout, attention).block, qk_norm=qk_norm)
        self.blocks = nn.ModuleList(vit_block(block, bool(n_classes)) for _ in range(depth))
        self.head = MlmHead(width, self.embedding, vocab_size, 1e-6, has_input_norm=True)
        self.labels = LabelEmbedding(n_classes, width) if n_classes else None
        self._add_slots()
        init_transformer(self)
        for table in (self.shown_positions, self.positions):
            nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)
        if n_classes:
            self.modulations = nn.ModuleList(zero(nn.Linear(width, 6 * width)) for _ in range(depth))

    def _add_slots(self) -> None:
        """Of each slot: the position it predicts, and the one it shows, L for none."""
        groups = self.plan.positions.split(self.plan.sizes)
        shown = [torch.full_like(groups[0], self.plan.length)]
        shown += [
            F.pad(before, (0, len(group) - len(before)), value=self.plan.length) for before, group in pairwise(groups)
        ]
        self.register_buffer("predicted", self.plan.positions, persistent=False)
        self.register_buffer("shown", torch.cat(shown), persistent=False)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the groups are the time
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at `where` (B, L); a group sees earlier ones only."""
        if subset is not None:
            raise ValueError("dropped tokens do not go with groups in turn; use keep_ratio 1")
        x = self.hidden(self.inputs(x_t), cond)
        x = torch.empty_like(x).index_copy(1, self.predicted, x)
        return Categorical(self.head(x if where is None else x[where]), where)

    def inputs(self, x_t: Tensor) -> Tensor:
        """(B, L) int64, the ids of the slots."""
        return F.pad(x_t, (0, 1), value=self.vocab_size)[:, self.shown]

    def hidden(self, ids: Tensor, cond: Condition | None, cache: KeyValueCache | None = None) -> Tensor:
        """Slots (B, n), those after the cached ones -> hidden vectors (B, n, D)."""
        start = 0 if cache is None else cache.length
        slots = slice(start, start + ids.shape[1])
        places = F.embedding(self.predicted[slots], self.positions) + F.embedding(
            self.shown[slots], self.shown_positions
        )
        x = self.embedding(ids) + places
        x, vectors = self.dropout(x), self._condition(ids, cond)
        mask = self.pattern.mask(slots.stop, ids.device, start)
        for index, block in enumerate(self.blocks):
            modulation = None if vectors is None else self.modulations[index](vectors)
            x = block(x, modulation, mask=mask, cache=None if cache is None else cache.layers[index])
        if cache is not None:
            cache.append(ids)
        hidden: Tensor = x
        return hidden

    def _condition(self, ids: Tensor, cond: Condition | None) -> Tensor | None:
        """(B, D)"""
        if self.labels is None:
            return None
        embedded = self.labels(torch.full_like(ids[:, 0], NULL) if cond is None else cond.labels)
        hidden: Tensor = F.silu(embedded)
        return hidden

    def cached(self) -> CachedGroups:
        """The network for sampling, with the keys and values of finished groups kept."""
        return CachedGroups(self)


class CachedGroups:
    """An `M2T` as a denoiser that computes each group once.

    Exact: cached slots are compared with those of every call and dropped from the first difference on. One object per
    decoding and condition; a call for positions in several groups is computed without the cache.
    """

    def __init__(self, network: M2T) -> None:
        self.network = network
        self.cache = KeyValueCache(len(network.blocks))
        self.ends = [0, *torch.tensor(network.plan.sizes).cumsum(0).tolist()]
        self.traits = replace(network.traits, has_cache=False, keeps_rows=True)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """As the network; x_t (B, L), the same rows in every call."""
        network = self.network
        groups = torch.zeros(0) if where is None else network.plan.index.to(where.device)[where.any(0)].unique()
        if where is None or len(groups) != 1 or subset is not None:
            plain: Categorical = network(x_t, t, cond, subset=subset, where=where)
            return plain
        group = int(groups)
        start, end = self.ends[group], self.ends[group + 1]
        ids = network.inputs(x_t)
        shared = network.pattern.closed(min(self.cache.matching(ids), start))
        self.cache.crop(shared)
        x = network.hidden(ids[:, shared:end], cond, self.cache)[:, start - shared :]
        by_position = x.new_zeros(*x_t.shape, x.shape[-1]).index_copy(1, network.predicted[start:end], x)
        return Categorical(network.head(by_position[where]), where)
