"""U-ViT over discrete tokens: long skips between the first and the second half of the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import Categorical, Condition, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import Tables
from maskgen.nn.embeddings import LabelEmbedding, time_waves
from maskgen.nn.initialisation import init_transformer
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.null_caption import NullCaption
from maskgen.nn.patching import TokenPatches
from maskgen.nn.published_blocks import ViTSizes, uvit_block


@MODELS.register("uvit")
class UViT(nn.Module):
    """Tokens (B, L) with [MASK] -> Categorical over V tokens (arXiv 2209.12152; discrete: arXiv 2412.06787).

    Squares of tokens are joined to patches; captions or class, time and patches are one sequence with learned
    positions. Each block of the second half starts from Linear(x, output of its mirror in the first half). Published:
    H 1152 x 29, 16 heads; S-deep 512 x 17, 8 heads.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels, used without captions; 0 for none. There is always a row for "no class".
        caption_width: of embedded captions; 0 for a network that takes none.
        width, heads, mlp_ratio: the usual sizes.
        depth: blocks, an odd number: one stands between the halves.
        patch: side of a patch in tokens.
        caption_length: tokens of a caption, each of which has a position.
        has_time: the time token embeds t; without, it is that of t = 0 and the masks alone determine the time.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",), tokens=("discrete",), streams=("image",), conditions=("class", "caption")
    )

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        caption_width: int = 0,
        width: int = 512,
        depth: int = 17,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        patch: int = 2,
        caption_length: int = 77,
        has_time: bool = False,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        _require_sizes(width, depth, caption_length)
        block = ViTSizes(width, depth, heads, mlp_ratio, backend=attention).block
        kinds = {"class": n_classes, "caption": caption_width}
        self.traits = replace(self.traits, conditions=tuple(name for name in self.traits.conditions if kinds[name]))
        self.vocab_size, self.grid, self.width, self.has_time = vocab_size, grid, width, has_time
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.patches = TokenPatches(width, patch, grid, width // 8, has_bias=True)
        self.labels = LabelEmbedding(n_classes, width) if n_classes and not caption_width else None
        self.captions = nn.Linear(caption_width, width) if caption_width else None
        self.null_caption = NullCaption(caption_length, caption_width) if caption_width else None
        n_condition = caption_length if caption_width else int(self.labels is not None)
        self.n_prefix = n_condition + 1
        self.positions = nn.Parameter(torch.empty(self.n_prefix + self.patches.n_patches, width))
        self.blocks = nn.ModuleList(uvit_block(block) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.head = nn.Conv2d(width // 8, vocab_size, 3, padding=1)
        self._init()

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check the sizes of a recipe.

        Raises:
            ValueError: they are not possible.
        """
        keys: Mapping[str, Any] = context.model
        try:
            _require_sizes(keys["width"], keys["depth"], keys["caption_length"])
            ViTSizes(keys["width"], keys["depth"], keys["heads"], keys["mlp_ratio"])
        except ValueError as error:
            raise under("model", error) from None

    def tables(self) -> Tables:
        """Rows of the token table and of the head."""
        return {"embedding.weight": ("token", "mask"), "head.weight": ("token",), "head.bias": ("token",)}

    def _init(self) -> None:
        init_transformer(self)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.xavier_uniform_(self.patches.joined.weight.flatten(1))
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

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

        Raises:
            ValueError: a subset of the tokens, which it cannot do without.
        """
        if subset is not None:
            raise ValueError("uvit joins tokens to patches and drops none; use train.keep_ratio 1")
        waves = time_waves(1 - t if self.has_time else torch.zeros_like(t), self.width)  # published: 1 is all visible
        prefix = [*self._condition(x_t, cond), waves.to(self.positions.dtype)[:, None]]
        x = torch.cat([*prefix, self.patches.join(self.embedding(x_t))], 1) + self.positions
        middle = len(self.blocks) // 2
        passed: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index > middle:
                x = self.skips[index - middle - 1](torch.cat([x, passed.pop()], -1))
            x = block(x)
            if index < middle:
                passed.append(x)
        x = self.patches.split(self.norm(x)[:, self.n_prefix :])  # (B, L, D / 8)
        logits = self.head(x.mT.unflatten(-1, self.grid)).flatten(2).mT
        return Categorical(logits if where is None else logits[where], where)

    def _condition(self, x_t: Tensor, cond: Condition | None) -> list[Tensor]:
        """Captions (B, S, D), the class (B, 1, D), or nothing."""
        if self.captions is not None:
            assert self.null_caption is not None
            return [self.captions(self.null_caption(len(x_t), None if cond is None else cond.captions))]
        if self.labels is None:
            return []
        return [self.labels(labels_of(cond, x_t))[:, None]]


def _require_sizes(width: int, depth: int, caption_length: int) -> None:
    if width % 8 or depth % 2 == 0 or caption_length < 1:
        raise ValueError(
            "width must be a multiple of 8, depth odd and caption_length at least 1, got "
            f"{width}, {depth} and {caption_length}"
        )
