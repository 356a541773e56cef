"""The MaskGIT transformer: bidirectional, over a grid of image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.predictions import NULL, Categorical, Condition, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import RowKind, Tables
from maskgen.nn.block import Block
from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding
from maskgen.nn.heads import LinearHead, LossHead, maskgit_head
from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.rotary import rotation_2d, rotation_released
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.patching import TokenPatches, require_patch
from maskgen.nn.prefix import PrefixPlace, prefix_order, reordered
from maskgen.nn.published_blocks import BlockSizes, NormKind, ViTSizes, require_condition, token_blocks


@MODELS.register("maskgit")
class MaskGIT(nn.Module):
    """Tokens (B, L) with [MASK] -> Categorical over V tokens (Chang et al., arXiv 2202.04200).

    The published network is `norm: post`, `condition: token`, `positions: learned`, `tied: true`,
    `has_null_label: false`, 24 x 768: 172,457,193 parameters for 1,024 codes, 1,000 classes and 256 tokens.
    Halton-MaskGIT (arXiv 2503.17076) is `norm: rms`, `qk_norm: true`, `registers: 1`, `head: linear`; MaskGIL
    (synbol/MaskGIL) is `norm: rms`, `condition: token`, `positions: raster`, `head: linear`, `tied: false`.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for an unconditional network.
        width, depth, heads, mlp_ratio, dropout: the usual sizes.
        norm: `post` (BERT, as published), `pre`, or `rms` (LLaMA's block: RMSNorm before each branch, SwiGLU of two
            thirds of the width, no biases).
        positions: `learned`; 2-D `rotary`; or `raster`, 1-D rotary with the released angles of MaskGIL.
        condition: `token`, a class token in front; or `adaln`, shift, scale and gate of every block (DiT,
            Halton-MaskGIT; needs `norm: pre`).
        tied: the head's weights are the token embedding's.
        has_null_label: a row for "no class", which guidance needs; always there with `adaln`.
        qk_norm: RMS-normalised queries and keys, of each head (`norm: pre`) or over the width (`norm: rms`).
        has_difficulty: a second head predicts each token's loss, which mask strategy `hard` requires.
        has_time: t is a condition too (with `condition: adaln`), as in discrete interpolants; without, the time is only
            implied by the masks.
        head: `mlm` (BERT's), or `linear`: a norm, modulated with `condition: adaln`, and one layer.
        registers: learned tokens without position that every token attends to and that predict nothing.
        patch: side of the squares of tokens that blocks treat as one, joined and split by linear layers.
        attention: `auto`, `sdpa` or `xformers`.
        mixer: how tokens are mixed, `attention` or another of `MIXERS`.
        condition_place: of class token and registers in the row: `head`, `middle` (MaskMamba's) or `tail`; attention
            does not see the difference, mixers that scan the tokens in order do.
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
        norm: NormKind = "pre",
        positions: Literal["learned", "rotary", "raster"] = "learned",
        condition: Literal["token", "adaln"] = "adaln",
        tied: bool = True,
        has_null_label: bool = True,
        qk_norm: bool = False,
        has_time: bool = False,
        has_difficulty: bool = False,
        head: Literal["mlm", "linear"] = "mlm",
        registers: int = 0,
        patch: int = 1,
        attention: AttentionBackend = "auto",
        mixer: Mixer = ATTENTION,
        condition_place: PrefixPlace = "head",
    ) -> None:
        super().__init__()
        sizes = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention, width // heads if norm == "rms" else 0)
        require_condition(norm, condition, qk_norm, has_null_label, has_time)
        require_patch(registers, patch, positions)
        self.vocab_size, self.length, self.n_classes = vocab_size, grid[0] * grid[1], n_classes
        self.grid, self.head_width, self.place = grid, width // heads, condition_place
        self.condition, self.has_null_label = condition if n_classes else "none", has_null_label
        self.n_registers, is_modulated = registers, self.condition == "adaln" or has_time
        keys = {"positions": positions, "has_null_label": has_null_label, "has_difficulty": has_difficulty}
        traits = self.traits_for({**keys, "patch": patch, "mixer": mixer})
        self.traits = replace(traits, conditions=("class",) if n_classes else ())
        self._add_embedding(width, positions, patch)
        self._add_blocks(norm, replace(sizes.block, qk_norm=qk_norm, mixer=mixer), depth, is_modulated)
        self.head = maskgit_head(head, width, self.embedding if tied else None, vocab_size, norm, is_modulated)
        self._init(width, depth, has_time, has_difficulty)

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        mixer: Mixer = keys["mixer"]
        traits = replace(
            cls.traits,
            has_null_label=bool(keys["has_null_label"]),
            has_difficulty=bool(keys["has_difficulty"]),
            has_fixed_grid=keys["positions"] != "rotary",
            drops_tokens=keys["patch"] == 1,
            has_attention_scores=keys["patch"] == 1,
        )
        return mixer.traits.limit(traits)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that the grid can change if the recipe's phases change it.

        Raises:
            ValueError: learned positions, which have no value between two.
        """
        positions = context.model["positions"]
        if context.resolution is not None and positions != "rotary":
            raise ValueError(
                f"train.phases: resolution {context.resolution}: {positions} positions are for one grid of tokens; use "
                "model.positions rotary, or leave it out"
            )

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it.

        Raises:
            ValueError: learned or raster positions, which cannot be interpolated.
        """
        if self.positions is not None or self.is_raster:
            raise ValueError("learned and raster positions are for one grid; use positions rotary")
        turns = rotation_2d(grid, self.head_width, extent=self.grid)
        still = torch.ones(self.n_prefix, turns.shape[1], dtype=turns.dtype)  # class token and registers have none
        self.length = grid[0] * grid[1]
        self.rotation = torch.cat([still, turns]).to(turns.device if self.rotation is None else self.rotation.device)

    def _add_embedding(self, width: int, positions: str, patch: int) -> None:
        """One table of codes, [MASK] and labels, as in BERT; learned positions, or rotary ones."""
        n_class = int(self.condition == "token")
        self.n_prefix, self.is_raster = n_class + self.n_registers, positions == "raster"
        self.embedding = nn.Embedding(self.vocab_size + 1 + (self.n_classes + self.has_null_label) * n_class, width)
        is_learned = positions == "learned"
        self.positions = nn.Parameter(torch.empty(n_class + self.length, width)) if is_learned else None
        self.registers = nn.Parameter(torch.empty(self.n_registers, width)) if self.n_registers else None
        turns = rotation_released(self.length, self.head_width, self.n_prefix) if self.is_raster else None
        self.register_buffer("rotation", turns, persistent=False)
        if positions == "rotary":
            self.set_grid(self.grid)
        self.patches = TokenPatches(width, patch, self.grid) if patch > 1 else None

    def tables(self) -> Tables:
        """Rows of the token table and of the head."""
        labels: tuple[RowKind, ...] = ("class", "null") if self.has_null_label else ("class",)
        rows: tuple[RowKind, ...] = ("token", "mask", *(labels if self.condition == "token" else ()))
        tables: dict[str, tuple[RowKind, ...]] = {"embedding.weight": rows}
        if self.head.output is not None:
            tables["head.output.weight"] = ("token",)
        if self.head.bias is not None:
            tables["head.bias"] = rows if self.head.output is None else ("token",)
        return tables

    def _add_blocks(self, norm: NormKind, sizes: BlockSizes, depth: int, is_modulated: bool) -> None:
        self.embedding_norm = nn.LayerNorm(sizes.width, eps=1e-12) if norm == "post" else nn.Identity()
        self.dropout = nn.Dropout(sizes.dropout)
        n_tokens = self.length if self.patches is None else self.patches.n_patches
        self.blocks = token_blocks(norm, sizes, depth, self.n_prefix + n_tokens, is_modulated)

    def _init(self, width: int, depth: int, has_time: bool, has_difficulty: bool) -> None:
        """Embeddings of class and time for adaLN, and the head of difficulty; then all initial weights."""
        if self.condition == "adaln":
            self.labels = LabelEmbedding(self.n_classes, width)
        self.time = TimeEmbedding(width) if has_time else None
        self.loss_head = LossHead(width) if has_difficulty else None
        init_transformer(self)
        for table in (self.positions, self.registers):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)
        if self.condition == "adaln" or has_time:
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
        if self.patches is not None:
            x = self.patches.split(x)
        if subset is not None:
            x = subset.scatter(x)
        y = self.head.normed(x, self._hidden(x_t, t, cond)) if isinstance(self.head, LinearHead) else x
        x, y = (x, y) if where is None else (x[where], y[where])
        return Categorical(self.head(y), where, None if self.loss_head is None else self.loss_head(x))

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
        x = self._through(x_t, t, cond)[:, self.n_prefix :]
        expected: Tensor = self.loss_head(x if self.patches is None else self.patches.split(x))
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
        n_tokens = self.length if self.patches is None else self.patches.n_patches
        order, hidden = prefix_order(self.n_prefix, n_tokens, self.place, subset, x.device), self._hidden(x_t, t, cond)
        x, rotation = reordered(x, order), None if rotation is None else reordered(rotation, order)
        for index, block in enumerate(self.blocks[:n_blocks]):
            x = block(x, self._modulation(index, hidden), rotation=rotation)
        return x if order is None else reordered(x, order.argsort(1))

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
        if self.condition == "token" and not self.has_null_label:
            raise ValueError("without a null label (has_null_label false) its features depend on a class")
        t = torch.zeros(len(x_0), device=x_0.device)
        x = self._through(x_0, t, None)[:, self.n_prefix :]
        x = x if self.patches is None else self.patches.split(x)
        if isinstance(self.head, LinearHead):
            return self.head.normed(x, self._hidden(x_0, t, None))
        out: Tensor = self.head.input_norm(x)
        return out

    def _hidden(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> Tensor | None:
        """Condition of the blocks (B, D): class, time or their sum."""
        parts = [self.labels(labels_of(cond, x_t))] if self.condition == "adaln" else []
        if self.time is not None:
            parts.append(self.time(t))
        return F.silu(torch.stack(parts).sum(0)) if parts else None

    def _embed(self, x_t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        ids = x_t
        if self.condition == "token":
            labels = labels_of(cond, x_t)
            rows = self.vocab_size + 1 + torch.where(labels == NULL, self.n_classes, labels)
            ids = torch.cat([rows[:, None], x_t], 1)
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions
        x = self.dropout(self.embedding_norm(x))
        if self.patches is not None:
            n_class = x.shape[1] - self.length
            x = torch.cat([x[:, :n_class], self.patches.join(x[:, n_class:])], 1)
        if self.registers is not None:
            x = torch.cat([self.registers.expand(len(x), -1, -1), x], 1)
        return x, self.rotation

    def _drop(self, x: Tensor, rotation: Tensor | None, subset: TokenSubset) -> tuple[Tensor, Tensor | None]:
        n_prefix = x.shape[1] - self.length
        keep = subset.keep + n_prefix
        if n_prefix:
            keep = torch.cat([torch.arange(n_prefix, device=keep.device).expand(len(keep), -1), keep], 1)
        kept = TokenSubset(keep, x.shape[1])
        return kept.gather(x), None if rotation is None else rotation[keep]
