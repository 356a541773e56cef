"""Token-choice mixture of experts with group-limited routing and a shared expert (DeepSeek-V3's, LLaDA2's)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from maskgen.nn.layers.mlp import GatedMlp


class ExpertSettings(BaseModel):
    """Recipe key `model.experts` of text networks; the defaults are LLaDA2.0-mini's.

    Attributes:
        n_experts: E.
        n_chosen: experts that compute a token.
        width: of each expert.
        n_groups, n_chosen_groups: experts are in G groups of equal size, and those of a token in a few of them.
        n_shared: experts that compute every token, as one layer of n_shared times the width; 0 for none.
        scale: of the chosen experts' weights, whose sum is 1 before.
        n_dense: first blocks without experts, whose feed-forward layer is a plain one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_experts: int = Field(256, ge=1)
    n_chosen: int = Field(8, ge=1)
    width: int = Field(512, ge=1)
    n_groups: int = Field(8, ge=1)
    n_chosen_groups: int = Field(4, ge=1)
    n_shared: int = Field(1, ge=0)
    scale: float = Field(2.5, gt=0)
    n_dense: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> ExpertSettings:
        size = self.n_experts // self.n_groups
        if self.n_experts % self.n_groups or size < 2 or self.n_chosen_groups > self.n_groups:
            raise ValueError(
                "n_experts must be n_groups times at least 2, and n_chosen_groups at most n_groups, got "
                f"{self.n_experts}, {self.n_groups} and {self.n_chosen_groups}"
            )
        if self.n_chosen > self.n_chosen_groups * size:
            raise ValueError(
                f"n_chosen must be at most the {self.n_chosen_groups * size} experts of the chosen groups, got "
                f"{self.n_chosen}"
            )
        return self


class RoutedExperts(nn.Module):
    """SwiGLU experts, of which each token chooses a few (DeepSeek-V3, arXiv 2412.19437; LLaDA2.0, 2512.15745).

    score = sigmoid(gate x), and score + bias decides: the groups with the largest sums of their two best experts, then
    the best experts in them. Their scores, which sum to `scale` after division, weigh their outputs. The bias has no
    gradient: published files have the one that balanced the load of their training, new networks zeros. A token's
    output depends on itself only.

    Args:
        width: D.
        settings: of the experts.
        dropout: of the output.
    """

    score_bias: Tensor

    def __init__(self, width: int, settings: ExpertSettings, dropout: float = 0.0) -> None:
        super().__init__()
        self.settings, self.dropout = settings, dropout
        n, hidden = settings.n_experts, settings.width
        self.gate = nn.Linear(width, n, bias=False)
        self.register_buffer("score_bias", torch.zeros(n))
        self.expand = nn.Parameter(torch.empty(n, 2 * hidden, width))
        self.contract = nn.Parameter(torch.empty(n, width, hidden))
        self.shared = GatedMlp(width, settings.n_shared * hidden) if settings.n_shared else None
        for parameter in (self.gate.weight, self.expand, self.contract):
            nn.init.normal_(parameter, std=0.02)

    def extra_repr(self) -> str:
        return f"{self.settings!r}"

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D) -> experts (N, K) int64 of each token, and their weights (N, K) float32."""
        settings = self.settings
        scores = F.linear(x.float(), self.gate.weight.float()).sigmoid()  # (N, E)
        ranked = (scores + self.score_bias).unflatten(1, (settings.n_groups, -1))
        groups = ranked.topk(2, -1).values.sum(-1).topk(settings.n_chosen_groups, -1).indices
        is_open = torch.zeros(ranked.shape[:2], dtype=torch.bool, device=x.device).scatter(1, groups, True)
        chosen = ranked.masked_fill(~is_open[..., None], -torch.inf).flatten(1).topk(settings.n_chosen, -1).indices
        weights = scores.gather(1, chosen)
        if settings.n_chosen > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * settings.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        flat = x.flatten(0, 1)
        chosen, weights = self.route(flat)
        order = chosen.flatten().argsort(stable=True)  # pairs of token and expert, expert by expert
        tokens = order // chosen.shape[1]
        # The one transfer to the host: how many tokens each expert has.
        sizes = chosen.flatten().bincount(minlength=self.settings.n_experts).tolist()
        parts = [
            self._expert(index, part)
            for index, part in enumerate(flat.index_select(0, tokens).split(sizes))
            if len(part)
        ]
        weighted = torch.cat(parts) * weights.flatten().index_select(0, order)[:, None].to(x.dtype)
        y = torch.zeros_like(flat).index_add(0, tokens, weighted).view_as(x)
        y = y if self.shared is None else y + self.shared(x)
        return F.dropout(y, self.dropout, self.training)

    def _expert(self, index: int, x: Tensor) -> Tensor:
        """x (n, D) -> (n, D), the output of one expert."""
        gate, value = F.linear(x, self.expand[index]).chunk(2, -1)
        return F.linear(F.silu(gate) * value, self.contract[index])
