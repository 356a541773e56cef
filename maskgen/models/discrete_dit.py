"""DiT over discrete tokens: adaLN blocks on squares of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import Categorical, Condition, labels_of
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import Tables
from maskgen.models.trunks import PlainTrunk, Sizes, init_trunk
from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding, require_sincos, sincos_2d
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.registry import Mixer
from maskgen.nn.mixers.self_attention import ATTENTION
from maskgen.nn.published_blocks import ViTSizes


@MODELS.register("discrete_dit")
class DiscreteDiT(nn.Module):
    """Tokens (B, L) with [MASK] -> Categorical over V tokens, by a DiT (arXiv 2212.09748; discrete: 2412.06787).

    Squares of embedded tokens are joined to patches with fixed positions; class plus time modulate every block. The
    head predicts all tokens of a patch. Published: XL/2 1152 x 28, 16 heads.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        n_classes: labels; 0 for none. There is always a row for "no class".
        width, depth, heads, mlp_ratio: the usual sizes.
        patch: side p of a patch in tokens.
        has_time: the condition embeds t; without, it is that of t = 0 and the masks alone tell the time.
        attention: `auto`, `sdpa` or `xformers`.
        mixer: how patches are mixed, `attention` or another of `MIXERS`.

    Raises:
        ValueError: a size that cannot be built.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",), tokens=("discrete",), streams=("image",), conditions=("class",)
    )
    positions: Tensor

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        n_classes: int = 0,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        patch: int = 2,
        has_time: bool = False,
        attention: AttentionBackend = "auto",
        mixer: Mixer = ATTENTION,
    ) -> None:
        super().__init__()
        if patch < 1 or grid[0] % patch or grid[1] % patch:
            raise ValueError(f"patch must be at least 1 and divide the grid {grid[0]} x {grid[1]}, got {patch}")
        self.vocab_size, self.grid, self.patch, self.has_time = vocab_size, grid, patch, has_time
        self.patches = (grid[0] // patch, grid[1] // patch)
        self.traits = replace(self.traits_for({"mixer": mixer}), conditions=("class",) if n_classes else ())
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.joined = nn.Conv2d(width, width, patch, patch)
        self.time = TimeEmbedding(width, scale=1.0)
        self.labels = LabelEmbedding(n_classes, width) if n_classes else None
        n_out = patch**2 * vocab_size
        self.trunk = PlainTrunk(Sizes(width, depth, heads, mlp_ratio, attention, self.patches, n_out, mixer=mixer))
        self.register_buffer("positions", sincos_2d(self.patches, width), persistent=False)
        self._init()

    @classmethod
    def traits_for(cls, keys: Mapping[str, Any]) -> NetworkTraits:
        """Traits of the network that keys of a recipe describe."""
        mixer: Mixer = keys["mixer"]
        return mixer.traits.limit(cls.traits)

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check the sizes of a recipe.

        Raises:
            ValueError: they are not possible.
        """
        keys: Mapping[str, Any] = context.model
        try:
            require_sincos(ViTSizes(*(keys[name] for name in ("width", "depth", "heads", "mlp_ratio"))).width)
        except ValueError as error:
            raise under("model", error) from None

    def tables(self) -> Tables:
        """Rows of the token table; those of the head are of a place in the patch and a token."""
        return {"embedding.weight": ("token", "mask")}

    def _init(self) -> None:
        """DiT's start: modulations and head zero, embeddings of standard deviation 0.02."""
        init_trunk(self.trunk)
        nn.init.xavier_uniform_(self.joined.weight.flatten(1))
        assert self.joined.bias is not None
        nn.init.zeros_(self.joined.bias)
        parts = [self.embedding, self.time, *([] if self.labels is None else [self.labels])]
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)

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
            raise ValueError("discrete_dit joins tokens to patches and drops none; use train.keep_ratio 1")
        x = self.joined(self.embedding(x_t).mT.unflatten(-1, self.grid)).flatten(2).mT  # (B, L / p^2, D)
        outputs = self.trunk(x + self.positions, self._hidden(t, cond), None)
        (height, width), p = self.patches, self.patch
        logits = outputs.view(-1, height, width, p, p, self.vocab_size).transpose(2, 3).flatten(1, 4)  # (B, L, V)
        return Categorical(logits if where is None else logits[where], where)

    def _hidden(self, t: Tensor, cond: Condition | None) -> Tensor:
        """Condition of the blocks (B, D): time, 1 where all is visible as published, plus class."""
        hidden: Tensor = self.time(1 - t if self.has_time else torch.zeros_like(t))
        if self.labels is not None:
            hidden = hidden + self.labels(labels_of(cond, t))
        return F.silu(hidden)
