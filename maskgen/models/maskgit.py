"""The MaskGIT transformer: bidirectional, over a grid of image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.predictions import NULL, Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import RowKind, Tables
from maskgen.nn.block import Block
from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding
from maskgen.nn.heads import LossHead, MlmHead
from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.rotary import rotation_2d
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.published_blocks import BlockSizes, ViTSizes, bert_block, vit_block


@MODELS.register("maskgit")
class MaskGIT(nn.Module):
    """Tokens (B, L) with [MASK] -> Categorical over V tokens (Chang et al., arXiv 2202.04200).

    The published network is `norm: post`, `condition: token`, `positions: learned`, `tied: true`,
    `has_null_label: false`, 24 x 768: 172,457,193 parameters for 1,024 codes, 1,000 classes and 256 tokens.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for an unconditional network.
        width, depth, heads, mlp_ratio, dropout: the usual sizes.
        norm: `post` (BERT, as published) or `pre`.
        positions: `learned`, or 2-D `rotary`.
        condition: `token`, a class token in front; or `adaln`, shift, scale and gate of every block (DiT,
            Halton-MaskGIT; needs `norm: pre`).
        tied: the head's weights are the token embedding's.
        has_null_label: a row for "no class", which guidance needs; always there with `adaln`.
        qk_norm: RMS-normalised queries and keys (with `norm: pre`).
        has_difficulty: a second head predicts each token's loss, which mask strategy `hard` requires.
        has_time: t is a condition too (with `condition: adaln`), as in discrete interpolants; without, the time is only
            implied by the masks.
        attention: `auto`, `sdpa` or `xformers`.
        mixer: how tokens are mixed, `attention` or another of `MIXERS`.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",),
        tokens=("discrete",),
        streams=("image",),
        drops_tokens=True,
        has_attention_scores=True,
        has_features=True,
    )

    rotation: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "pre",
        positions: Literal["learned", "rotary"] = "learned",
        condition: Literal["token", "adaln"] = "adaln",
        tied: bool = True,
        has_null_label: bool = True,
        qk_norm: bool = False,
        has_time: bool = False,
        has_difficulty: bool = False,
        attention: AttentionBackend = "auto",
        mixer: Mixer = ATTENTION,
    ) -> None:
        super().__init__()
        sizes = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention)
        _require_condition(norm, condition, qk_norm, has_null_label, has_time)
        self.vocab_size, self.length, self.n_classes = vocab_size, grid[0] * grid[1], n_classes
        self.grid, self.head_width = grid, width // heads
        self.condition, self.has_null_label = condition if n_classes else "none", has_null_label
        is_modulated = self.condition == "adaln" or has_time
        keys = {"positions": positions, "has_null_label": has_null_label, "has_difficulty": has_difficulty}
        traits = self.traits_for({**keys, "mixer": mixer})
        self.traits = replace(traits, conditions=("class",) if n_classes else ())
        self._add_embedding(width, positions == "learned")
        eps = 1e-12 if norm == "post" else 1e-6
        self.embedding_norm = nn.LayerNorm(width, eps=eps) if norm == "post" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        block = replace(sizes.block, qk_norm=qk_norm, mixer=mixer)
        self._add_blocks(block, depth, is_modulated, eps if norm == "post" else None)
        self.head = MlmHead(width, self.embedding if tied else None, vocab_size, eps, has_input_norm=norm == "pre")
        self._add_conditions(width, has_time, has_difficulty)
        self._init(width, depth, is_modulated)

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        mixer: Mixer = keys["mixer"]
        traits = replace(
            cls.traits,
            has_null_label=bool(keys["has_null_label"]),
            has_difficulty=bool(keys["has_difficulty"]),
            has_fixed_grid=keys["positions"] == "learned",
        )
        return mixer.traits.limit(traits)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that the grid can change if the recipe's phases change it.

        Raises:
            ValueError: learned positions, which have no value between two.
        """
        if context.resolution is not None and context.model["positions"] == "learned":
            raise ValueError(
                f"train.phases: resolution {context.resolution}: learned positions are for one grid of tokens; use "
                "model.positions rotary, or leave it out"
            )

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it.

        Raises:
            ValueError: learned positions, which cannot be interpolated.
        """
        if self.positions is not None:
            raise ValueError("learned positions are for one grid; use positions rotary")
        turns = rotation_2d(grid, self.head_width, extent=self.grid)
        still = torch.ones(self.n_prefix, turns.shape[1], dtype=turns.dtype)  # the class token has no position
        self.length = grid[0] * grid[1]
        self.rotation = torch.cat([still, turns]).to(self.embedding.weight.device)

    def _add_embedding(self, width: int, is_learned: bool) -> None:
        """One table of codes, [MASK] and labels, as in BERT; learned positions, or rotary ones."""
        self.n_prefix = int(self.condition == "token")
        n_labels = (self.n_classes + self.has_null_label) * self.n_prefix
        self.embedding = nn.Embedding(self.vocab_size + 1 + n_labels, width)
        self.positions = nn.Parameter(torch.empty(self.n_prefix + self.length, width)) if is_learned else None
        self.register_buffer("rotation", None, persistent=False)
        if not is_learned:
            self.set_grid(self.grid)

    def tables(self) -> Tables:
        """Rows of the token table and of the head."""
        labels: tuple[RowKind, ...] = ("class", "null") if self.has_null_label else ("class",)
        rows: tuple[RowKind, ...] = ("token", "mask", *(labels if self.condition == "token" else ()))
        if self.head.output is not None:
            return {"embedding.weight": rows, "head.bias": ("token",), "head.output.weight": ("token",)}
        return {"embedding.weight": rows, "head.bias": rows}

    def _add_blocks(self, sizes: BlockSizes, depth: int, is_modulated: bool, eps: float | None) -> None:
        """BERT's blocks with an `eps`, else ViT's."""
        each = [sizes.at(layer, depth, self.n_prefix + self.length) for layer in range(depth)]
        self.blocks = nn.ModuleList(
            vit_block(one, is_modulated) if eps is None else bert_block(one, eps) for one in each
        )

    def _add_conditions(self, width: int, has_time: bool, has_difficulty: bool) -> None:
        """Embeddings of class and time for adaLN, and the head of difficulty."""
        if self.condition == "adaln":
            self.labels = LabelEmbedding(self.n_classes, width)
        self.time = TimeEmbedding(width) if has_time else None
        self.loss_head = LossHead(width) if has_difficulty else None

    def _init(self, width: int, depth: int, is_modulated: bool) -> None:
        init_transformer(self)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        if is_modulated:
            self.modulations = nn.ModuleList(zero(nn.Linear(width, 6 * width)) for _ in range(depth))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        With `subset`, tokens that are not kept are not computed, and their logits are undefined.
        """
        x = self._through(x_t, t, cond, subset)[:, self.n_prefix :]
        if subset is not None:
            x = subset.scatter(x)
        x = x if where is None else x[where]
        return Categorical(self.head(x), where, None if self.loss_head is None else self.loss_head(x))

    def attention_scores(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, L), attention to each of the tokens (B, L) in the last block.

        From the class token where there is one, else from all tokens.
        """
        t, last = torch.zeros(len(x_0), device=x_0.device), len(self.blocks) - 1
        x, hidden = self._through(x_0, t, cond, n_blocks=last), self._hidden(x_0, t, cond)
        block = self.blocks[last]
        assert isinstance(block, Block)
        weights = block.weights(x, self._modulation(last, hidden), self.rotation)
        scores = weights[:, 0] if self.n_prefix else weights.mean(1)
        return scores[:, self.n_prefix :]

    def difficulty(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, L), predicted difficulty of the tokens x_t (B, L); needs `has_difficulty`."""
        assert self.loss_head is not None
        expected: Tensor = self.loss_head(self._through(x_t, t, cond)[:, self.n_prefix :])
        return expected

    def _through(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None,
        subset: TokenSubset | None = None,
        n_blocks: int | None = None,
    ) -> Tensor:
        """(B, n_prefix + K, D) after the first blocks, after all if None."""
        x, rotation = self._embed(x_t, cond)
        if subset is not None:
            x, rotation = self._drop(x, rotation, subset)
        hidden = self._hidden(x_t, t, cond)
        for index, block in enumerate(self.blocks[:n_blocks]):
            x = block(x, self._modulation(index, hidden), rotation=rotation)
        return x

    def _modulation(self, index: int, hidden: Tensor | None) -> Tensor | None:
        """(B, 6 D) of a block."""
        modulation: Tensor | None = None if hidden is None else self.modulations[index](hidden)
        return modulation

    def features(self, x_0: Tensor) -> Tensor:
        """x_0 (B, L) int64 without [MASK] -> what all blocks make of it, (B, L, D), after the last norm.

        No class is given, and the class token is left out.

        Raises:
            ValueError: a network that has no row for "no class".
        """
        if self.n_prefix and not self.has_null_label:
            raise ValueError("without a null label (has_null_label false) its features depend on a class")
        x = self._through(x_0, torch.zeros(len(x_0), device=x_0.device), None)
        out: Tensor = self.head.input_norm(x[:, self.n_prefix :])
        return out

    def _hidden(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> Tensor | None:
        """Condition of the blocks (B, D): class, time or their sum."""
        parts = [self.labels(self._labels(x_t, cond))] if self.condition == "adaln" else []
        if self.time is not None:
            parts.append(self.time(t))
        return F.silu(torch.stack(parts).sum(0)) if parts else None

    def _labels(self, x_t: Tensor, cond: Condition | None) -> Tensor:
        return torch.full_like(x_t[:, 0], NULL) if cond is None else cond.labels

    def _embed(self, x_t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        ids = x_t
        if self.condition == "token":
            labels = self._labels(x_t, cond)
            rows = self.vocab_size + 1 + torch.where(labels == NULL, self.n_classes, labels)
            ids = torch.cat([rows[:, None], x_t], 1)
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions
        return self.dropout(self.embedding_norm(x)), self.rotation

    def _drop(self, x: Tensor, rotation: Tensor | None, subset: TokenSubset) -> tuple[Tensor, Tensor | None]:
        n_prefix = x.shape[1] - self.length
        keep = subset.keep + n_prefix
        if n_prefix:
            keep = torch.cat([keep.new_zeros(len(keep), 1), keep], 1)
        kept = TokenSubset(keep, x.shape[1])
        return kept.gather(x), None if rotation is None else rotation[keep]


def _require_condition(norm: str, condition: str, qk_norm: bool, has_null_label: bool, has_time: bool) -> None:
    """Check that norm, class condition and time condition fit together.

    Raises:
        ValueError: they do not.
    """
    if norm == "post" and (condition == "adaln" or qk_norm):
        raise ValueError("norm post goes with condition token and without qk_norm; use norm pre for the others")
    if condition == "adaln" and not has_null_label:
        raise ValueError("has_null_label false goes with condition token; adaln always has the row")
    if has_time and condition != "adaln":
        raise ValueError("has_time goes with condition adaln; use that, or has_time false")
