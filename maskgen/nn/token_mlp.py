"""The network of a diffusion head: denoises one token, conditioned on a vector."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.heads import AdaHead
from maskgen.nn.initialisation import zero
from maskgen.nn.modulation import modulate


class TokenMlp(nn.Module):
    """Tokens x (N, D) at times t (N,), given z (N, C) -> (N, n_out): `SimpleMLPAdaLN` of MAR (arXiv 2406.11838, 4.3).

    Linear to the width, residual blocks modulated by time + z, then adaLN and Linear. Gates and the last layer start at
    zero, and so do the outputs.

    Args:
        token_width: D.
        n_out: outputs per token.
        z_width: C.
        width, depth: of the residual blocks.
    """

    def __init__(self, token_width: int, n_out: int, z_width: int, width: int, depth: int) -> None:
        super().__init__()
        if min(width, depth) < 1:
            raise ValueError(f"width and depth of a head must be positive, got {width} and {depth}")
        self.embedding = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width, scale=1.0)
        self.cond = nn.Linear(z_width, width)
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(depth))
        self.head = AdaHead(width, n_out)
        self._init()

    def _init(self) -> None:
        """Xavier-uniform matrices, normal ones of the time embedding, zero biases; modulations and output at zero."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        for parameter in self.time.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        zero(self.head.modulation)
        zero(self.head.out)
        for part in self.modules():
            if isinstance(part, TokenBlock):
                zero(part.modulation)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        hidden = F.silu(self.time(t) + self.cond(z))
        x = self.embedding(x)[:, None]  # (N, 1, W), a row of one token for the modulation
        for block in self.blocks:
            x = block(x, hidden)
        outputs: Tensor = self.head(x, hidden)[:, 0]
        return outputs


class TokenBlock(nn.Module):
    """x += gate MLP(LN(x) (1 + scale) + shift), the LayerNorm with weights of its own; the gate starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (N, L, W), hidden (N, W) -> (N, L, W)."""
        shift, scale, gate = self.modulation(hidden)[:, None].chunk(3, -1)
        out: Tensor = self.contract(F.silu(self.expand(modulate(self.norm(x), shift, scale))))
        moved: Tensor = x + gate * out
        return moved
