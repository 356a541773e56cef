"""M2T: a transformer that predicts the groups of a fixed plan in turn, all of them in one training pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.groups import FixedOrder, GroupPlan
from maskgen.core.predictions import Categorical, Condition, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.cached import Cached
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

    has_final_inputs = True
    predicted: Tensor
    shown: Tensor
    allowed: Tensor

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
        """Of each slot: the position it predicts, the one it shows, L for none, and the slots that it attends to."""
        groups = self.plan.positions.split(self.plan.sizes)
        shown = [torch.full_like(groups[0], self.plan.length)]
        shown += [
            F.pad(before, (0, len(group) - len(before)), value=self.plan.length) for before, group in pairwise(groups)
        ]
        self.register_buffer("predicted", self.plan.positions, persistent=False)
        self.register_buffer("shown", torch.cat(shown), persistent=False)
        slots = torch.arange(self.plan.length)
        self.register_buffer("allowed", self.pattern.allows(slots[:, None], slots[None]), persistent=False)

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
        mask = self.allowed[slots, : slots.stop]
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
        embedded = self.labels(labels_of(cond, ids))
        hidden: Tensor = F.silu(embedded)
        return hidden

    def cached(self) -> Cached:
        """The network for sampling, with the keys and values of finished groups kept."""
        return Cached(self)

    def span(self, where: Tensor) -> tuple[int, int] | None:
        """See `InTurn`."""
        slots = where.any(0)[self.predicted].nonzero()[:, 0]
        if not len(slots):
            return None
        start = self.pattern.closed(int(slots[0]))
        end = next(end for end in accumulate(self.plan.sizes) if end > start)
        return (start, end) if int(slots[-1]) < end else None

    def continued(
        self,
        ids: Tensor,
        t: Tensor,  # noqa: ARG002 - the groups are the time
        cond: Condition | None,
        cache: KeyValueCache,
    ) -> Tensor:
        """See `InTurn`."""
        return self.hidden(ids[:, cache.length :], cond, cache)

    def answered(
        self,
        x: Tensor,
        start: int,
        t: Tensor,  # noqa: ARG002
        cond: Condition | None,  # noqa: ARG002
        where: Tensor,
    ) -> Categorical:
        """See `InTurn`."""
        places = self.predicted[start : start + x.shape[1]]
        by_position = x.new_zeros(*where.shape, x.shape[-1]).index_copy(1, places, x)
        return Categorical(self.head(by_position[where]), where)
