"""Vector quantisers: latents (B, L, D) <-> code indices (B, L)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.devices import from_first_rank, sum_over_ranks


class FSQ(nn.Module):
    """Finite scalar quantisation: each of D numbers is bounded and rounded to one of its levels (arXiv 2309.15505).

    Args:
        levels: how many in each dimension; their product is the number of codes.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must each be at least 2, got {list(levels)}")
        self.dim, self.n_codes = len(levels), math.prod(levels)
        sizes = torch.tensor(levels)
        self.sizes: Tensor
        self.strides: Tensor
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("strides", sizes.cumprod(0) // sizes, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, L, D) -> quantised (B, L, D) in [-1, 1] with straight-through gradient, codes (B, L), penalty 0."""
        z = z.float()
        half = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = (self.sizes % 2 == 0) * 0.5  # an even number of levels has no zero in the middle
        bounded = (z + torch.atanh(offset / half)).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = ((bounded.detach().round() + self.sizes // 2).long() * self.strides).sum(-1)
        return rounded / (self.sizes // 2), codes, z.new_zeros(())

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        steps = codes[..., None] // self.strides % self.sizes
        half = self.sizes // 2
        return (steps - half) / half


class VQ(nn.Module):
    """Nearest codebook entry, straight-through, codebook as moving averages of what it is assigned.

    van den Oord et al. (arXiv 1711.00937, appendix A.1). Codes whose share of assignments falls under
    `revive_below / n_codes` are moved to the latents that are worst served (no random draw is needed).

    Args:
        n_codes, dim: size of the codebook.
        decay: of the moving averages.
        commitment: weight of the squared distance between latents and their code.
        revive_below: how rare a code must be to be moved; 0 never moves one.
    """

    def __init__(
        self, n_codes: int, dim: int, decay: float = 0.99, commitment: float = 0.25, revive_below: float = 0.05
    ) -> None:
        super().__init__()
        self.n_codes, self.dim = n_codes, dim
        self.decay, self.commitment, self.revive_below = decay, commitment, revive_below
        self.codebook: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("codebook", torch.zeros(n_codes, dim))
        self.register_buffer("counts", torch.zeros(n_codes))
        self.register_buffer("sums", torch.zeros(n_codes, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, L, D) -> quantised (B, L, D), codes (B, L), commitment penalty; training moves the codebook."""
        z = z.float()
        flat = z.detach().flatten(0, 1)
        if self.training and not self.counts.any():
            self._start(flat)
        codes = self._nearest(flat)
        quantised = self.codebook[codes].view_as(z)
        penalty = self.commitment * F.mse_loss(z, quantised)
        if self.training:
            self._move(flat, codes)
        return z + (quantised - z).detach(), codes.view(z.shape[:2]), penalty

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        return self.codebook[codes]

    def _nearest(self, flat: Tensor) -> Tensor:
        with torch.autocast(flat.device.type, enabled=False):  # in bf16 a tenth of the codes would be others
            distance = self.codebook.square().sum(1) - 2 * flat @ self.codebook.T  # less |z|^2, the same for all
        return distance.argmin(1)

    def _start(self, flat: Tensor) -> None:
        index = torch.linspace(0, len(flat) - 1, self.n_codes, device=flat.device).long()
        noise = torch.linspace(-1e-3, 1e-3, self.n_codes, device=flat.device)[:, None]  # equal latents must part
        self.codebook.copy_(from_first_rank(flat[index] + noise))
        self.counts.fill_(1.0)
        self.sums.copy_(self.codebook)

    def _move(self, flat: Tensor, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=self.n_codes).to(flat)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        self.counts.lerp_(sum_over_ranks(counts), 1 - self.decay)
        self.sums.lerp_(sum_over_ranks(sums), 1 - self.decay)
        self._revive(flat, codes)
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])

    def _revive(self, flat: Tensor, codes: Tensor) -> None:
        is_dead = self.counts < self.revive_below * self.counts.sum() / self.n_codes
        error = (flat - self.codebook[codes]).square().sum(1)
        worst = flat[error.argsort(descending=True)]
        # The i-th dead code gets the i-th worst latent of an even spread over the worse half.
        n_pool = max(len(worst) // 2, 1)
        stride = max(n_pool // self.n_codes, 1)
        place = (is_dead.cumsum(0) - 1).clamp(min=0) * stride % n_pool
        average = self.counts.sum() / self.n_codes
        fresh = from_first_rank(worst[place])
        self.sums.copy_(torch.where(is_dead[:, None], fresh * average, self.sums))
        self.counts.copy_(torch.where(is_dead, average, self.counts))
