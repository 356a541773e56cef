"""Blocks of CRATE: compression and sparse coding, and their mirrored inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.nn.checkpointing import Recomputable
from maskgen.nn.mixers.attention import AttentionBackend, AttentionSettings
from maskgen.nn.mixers.subspace import SubspaceAttention


@dataclass(frozen=True)
class CrateSizes:
    """Sizes of CRATE's blocks.

    Args:
        width: D.
        heads: H, subspaces of the compression step.
        step_size: eta of the sparse coding step.
        sparsity: lambda, weight of its L1 penalty.
        dropout: of attention and its output.
        backend: of attention.

    Raises:
        ValueError: sizes that are not possible.
    """

    width: int
    heads: int
    step_size: float = 0.1
    sparsity: float = 0.5
    dropout: float = 0.0
    backend: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        if not self.step_size > 0 or self.sparsity < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "step_size must be positive, sparsity not negative and dropout in [0, 1), got "
                f"{self.step_size}, {self.sparsity} and {self.dropout}"
            )
        self.attention()

    def attention(self) -> AttentionSettings:
        """Settings of the compression step."""
        return AttentionSettings(self.width, self.heads, dropout=self.dropout, backend=self.backend)


class SparseCoding(nn.Module):
    """One proximal gradient step of a non-negative lasso (ISTA): relu(x + eta D^T (x - D x) - eta lambda).

    It minimises |x - D z|^2 / 2 + lambda |z|_1 over z >= 0 from z = x, with a square dictionary D (CRATE, arXiv
    2306.01129, eq. 17). There is no residual connection around it.
    """

    def __init__(self, width: int, step_size: float, sparsity: float) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(width, width))
        self.step_size, self.sparsity = step_size, sparsity
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D), not negative."""
        descent = F.linear(x - F.linear(x, self.dictionary), self.dictionary.mT)
        return F.relu(x + self.step_size * (descent - self.sparsity))


class CrateEncoderBlock(Recomputable):
    """z' = z + MSSA(norm z), then sparse coding of norm z'."""

    def __init__(self, sizes: CrateSizes) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.attention = SubspaceAttention(sizes.attention())
        self.coding_norm = nn.LayerNorm(sizes.width)
        self.coding = SparseCoding(sizes.width, sizes.step_size, sizes.sparsity)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        coded: Tensor = self.coding(self.coding_norm(z + self.attention(self.attention_norm(z))))
        return coded


class CrateDecoderBlock(Recomputable):
    """z' = W norm z, then z' - MSSA(norm z'): the steps of the encoder, undone in reverse order (arXiv 2404.02446)."""

    def __init__(self, sizes: CrateSizes) -> None:
        super().__init__()
        self.linear_norm = nn.LayerNorm(sizes.width)
        self.linear = nn.Linear(sizes.width, sizes.width, bias=False)
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.attention = SubspaceAttention(sizes.attention())

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        z = self.linear(self.linear_norm(z))
        spread: Tensor = z - self.attention(self.attention_norm(z))
        return spread


class CrateStack(nn.Module):
    """Blocks and a last norm."""

    def __init__(self, blocks: list[Recomputable], width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        for block in self.blocks:
            z = block(z)
        normed: Tensor = self.norm(z)
        return normed
