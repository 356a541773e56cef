"""Feed-forward layers without bias: a gated one, and a mixture of experts that choose their tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """w3 (silu(w1 x) * w2 x) over (B, L, D) (arXiv 2002.05202); `expand` holds w1 above w2, `contract` is w3."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden, bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, -1)
        answer: Tensor = self.contract(F.silu(gate) * value)
        return answer

    def init(self, std: float) -> None:
        """w1 of deviation 0.02, what writes of deviation `std`."""
        gate, value = self.expand.weight.chunk(2)
        nn.init.normal_(gate, std=0.02)
        for weight in (value, self.contract.weight):
            nn.init.normal_(weight, std=std)


class ExpertChoice(nn.Module):
    """Experts that each take their best tokens of the same image (expert choice, arXiv 2202.09368).

    Of L tokens an expert takes the `n_tokens(L)` that weigh it most and adds their weight times its answer, a GELU
    network; the weights of a token are a softmax over the experts. A token may be taken by several experts or by none.
    The work is the same whatever is chosen, so nothing needs balancing, and rows do not depend on each other.

    Args:
        width: D.
        hidden: of each expert.
        n_experts: E.
        capacity: experts that take a token, on average.
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
        """Gate and first layers of deviation 0.02, what writes of deviation `std`."""
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.normal_(self.expand, std=0.02)
        nn.init.normal_(self.contract, std=std)

    def extra_repr(self) -> str:
        return f"n_experts={self.n_experts}, capacity={self.capacity}"

    def n_tokens(self, length: int) -> int:
        """Tokens an expert takes out of `length`, at least one, so that every expert always learns."""
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
