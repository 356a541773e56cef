"""The two-stream masked mixer: every token from all others in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.nn.checkpointing import Recomputable
from maskgen.nn.initialisation import init_transformer, zero
from maskgen.nn.layers.mlp import Mlp
from maskgen.nn.mixers.token_mixing import TokenMixing


class TwoStreamBlock(Recomputable):
    """Causal token mixing of two streams, a matrix each; norms and feed-forward layer are shared."""

    def __init__(self, width: int, length: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.mixing_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixers = nn.ModuleList(TokenMixing(width, length, heads, projects=heads > 1) for _ in range(2))
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, streams: Tensor) -> Tensor:
        """(2, B, L, D), the second from right to left -> (2, B, L, D)."""
        normed = self.mixing_norm(streams)
        mixed = [mixer(x, mask="causal") for mixer, x in zip(self.mixers, normed, strict=True)]
        streams = streams + torch.stack(mixed)
        out: Tensor = streams + self.mlp(self.mlp_norm(streams))
        return out


@MODELS.register("leave_one_out")
class LeaveOneOut(nn.Module):
    """Text (B, L) -> logits of each token given all others and never itself (masked mixers, arXiv 2409.01482).

    One stream mixes the tokens before a position, another those after it; their sum is the prediction. Trained by
    `next_token`, its loss is the pseudo-likelihood of every token in one pass, which is no bound on the likelihood; by
    `masked_tokens`, it is a denoiser like `mdlm` that also scores visible tokens.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V, which stands beyond both ends.
        grid: (L,), the number of tokens of a row.
        width, depth, mlp_ratio: the usual sizes.
        heads: groups of channels with a matrix each; above 1 with linear layers before and after.
    """

    traits = NetworkTraits(
        objectives=("next_token", "masked_tokens"),
        tokens=("discrete",),
        streams=("text",),
        conditions=(),
        has_null_label=False,
    )

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        heads: int = 1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if min(width, depth, heads) < 1 or not mlp_ratio > 0:
            raise ValueError(
                f"width, depth, heads and mlp_ratio must be positive, got {width}, {depth}, {heads} and {mlp_ratio}"
            )
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.blocks = nn.ModuleList(TwoStreamBlock(width, math.prod(grid), heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        init_transformer(self)
        zero(self.head)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - implied by the masks
        cond: Condition | None = None,  # noqa: ARG002 - text has no classes
        *,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L)."""
        end = torch.full_like(x_t[:, :1], self.vocab_size)
        before, after = torch.cat([end, x_t[:, :-1]], 1), torch.cat([end, x_t.flip(1)[:, :-1]], 1)
        streams = self.embedding(torch.stack([before, after]))  # (2, B, L, D)
        for block in self.blocks:
            streams = block(streams)
        x = self.norm(streams[0] + streams[1].flip(1))
        return Categorical(self.head(x if where is None else x[where]), where)
