"""Mixture of experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertChoice(nn.Module):
    """Expert-choice routing within a row: each expert selects its tokens (arXiv 2202.09368).

    The gate's softmax over the experts weighs each token. Of L tokens an expert selects the `n_tokens(L)` of highest
    weight and adds weight times output, the output of a two-layer GELU network without bias. A token may be selected by
    several experts or by none. The cost does not depend on the selection, so no load balancing is needed, and rows do
    not depend on each other.

    Args:
        width: D.
        hidden: width of each expert.
        n_experts: E.
        capacity: experts that select a token, on average.
    """

    def __init__(self, width: int, hidden: int, n_experts: int = 8, capacity: float = 2.0) -> None:
        super().__init__()
        if n_experts < 1 or not 0 < capacity <= n_experts:
            raise ValueError(
                f"capacity must be in (0, {n_experts}], the number of experts, which is at least 1; got {capacity}"
            )
        self.n_experts, self.capacity = n_experts, capacity
        self.gate = nn.Linear(width, n_experts, bias=False)
        self.expand = nn.Parameter(torch.empty(n_experts, width, hidden))
        self.contract = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.init(0.02)

    def init(self, std: float) -> None:
        """Gate and first layers of standard deviation 0.02, second layers of `std`."""
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.normal_(self.expand, std=0.02)
        nn.init.normal_(self.contract, std=std)

    def extra_repr(self) -> str:
        return f"n_experts={self.n_experts}, capacity={self.capacity}"

    def n_tokens(self, length: int) -> int:
        """Tokens that an expert selects out of `length`; at least one, so that every step trains every expert."""
        return max(int(self.capacity * length / self.n_experts), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        n_rows, length, width = x.shape
        weights = self.gate(x).softmax(-1)  # (B, L, E)
        weight, chosen = weights.permute(2, 0, 1).topk(self.n_tokens(length), -1)  # (E, B, K) each
        place = chosen + length * torch.arange(n_rows, device=x.device)[:, None]  # among the B L tokens of the batch
        # By index: as products with one-hot matrices this costs 4 L^2 D a row, 29 % of the layer at L = 1,024.
        # index_select: x[place] has a backward pass that adds in no fixed order when several threads work.
        taken = x.flatten(0, 1).index_select(0, place.flatten()).unflatten(0, (self.n_experts, -1))  # (E, B K, D)
        answer = F.gelu(taken @ self.expand) @ self.contract
        answer = answer * weight.flatten(1)[..., None]
        whole: Tensor = answer.new_zeros(n_rows * length, width)
        whole = whole.index_add(0, place.flatten(), answer.flatten(0, 1))
        return whole.view(n_rows, length, width)
