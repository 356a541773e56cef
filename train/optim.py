"""Optimizer and learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.layers.fused import FusedLinear
from maskgen.recipes.budget import TrainSettings

from .sharding import like, whole

_PLAIN = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm2d)

_UNDECAYED = ("positions", "log_rates")


def decayed(module: nn.Module) -> set[str]:
    """Names of the parameters with weight decay: matrices and kernels, not norms, biases, embeddings or rates."""
    names = set()
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1 and not isinstance(part, _PLAIN) and not name.endswith(_UNDECAYED):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


class Muon(torch.optim.AdamW):
    """AdamW, but matrices of groups with `n_parts` take orthogonalised momentum steps (Muon, arXiv 2502.16982).

    A step is 0.2 sqrt(max(rows, columns)) times the orthogonal factor of the Nesterov momentum: its size is AdamW's,
    and learning rate and weight decay mean the same for both. A fused matrix is orthogonalised, and its step scaled,
    part by part: `n_parts` is their number where they are equal, else the rows of each; 0 is AdamW. In float32:
    `torch.optim.Muon` works in bfloat16, which processors without it emulate.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in (group for group in groups if group["n_parts"]):
            for parameter in (p for p in group["params"] if p.grad is not None):
                self._turn(parameter, parameter.grad, group)
        self.param_groups = [group for group in groups if not group["n_parts"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _turn(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:  # with AdamW's counter: its `load_state_dict` looks for one
            state["momentum"], state["step"] = torch.zeros_like(parameter), torch.tensor(0.0)
        state["step"] += 1
        average = state["momentum"].lerp_(grad, 1 - self.momentum)
        direction = grad.lerp(average, self.momentum)
        matrix, n_parts = whole(direction), group["n_parts"]
        parts = matrix.chunk(n_parts) if isinstance(n_parts, int) else matrix.split(list(n_parts))
        sizes = [math.sqrt(max(part.shape)) for part in parts]
        turned = torch.cat([size / sizes[0] * orthogonal_factor(part) for part, size in zip(parts, sizes, strict=True)])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = 0.2 * sizes[0]
        parameter.add_(like(turned, parameter), alpha=-group["lr"] * scale)


def orthogonal_factor(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T: singular values between 0.7 and 1.2.

    By a Newton-Schulz iteration of fifth order whose coefficients are steep at zero (Muon; Jordan et al. 2024).
    """
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


def build_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW or Muon; weight decay for matrices only, Muon's steps for those of the transformer's blocks."""
    matrices = decayed(module)
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    fused, has_turns = fused_parts(module), settings.optimizer == "muon"
    parts = {name: _n_parts(name, p, fused) if has_turns and name in matrices else 0 for name, p in named.items()}
    # an order of its own, which the states in checkpoints have: numbers of equal parts, then lists of unequal ones
    fusions = sorted(set(parts.values()) - {0}, key=lambda kind: (isinstance(kind, tuple), kind))
    scales = rate_scales(module, settings.layer_decay)
    groups = []
    for n_parts, is_decayed in (*((kind, True) for kind in fusions), (0, True), (0, False)):
        chosen = [name for name in named if parts[name] == n_parts and (name in matrices) == is_decayed]
        for scale in sorted({scales[name] for name in chosen}):
            decay = settings.weight_decay if is_decayed else 0.0
            params = [named[name] for name in chosen if scales[name] == scale]
            groups.append({"params": params, "weight_decay": decay, "n_parts": n_parts, "scale": scale})
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=settings.betas)


def rate_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Learning rate of each parameter over that of the last layer: decay^(layers after it) (BEiT, arXiv 2106.08254).

    The blocks of all lists are layers in their order, what stands before them (embeddings, positions) is below the
    first, and the rest above the last. A list of matrices or tables as long as the blocks (modulations, biases) goes
    with them.
    """
    names = [name for name, _ in module.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    stacks = [(name, list(part)) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    stacks = [(name, parts) for name, parts in stacks if not any(name.startswith(f"{other}.") for other, _ in stacks)]
    layers: dict[str, int] = {}
    n_layers = 0
    for name, parts in stacks:
        is_beside = isinstance(parts[0], nn.Linear | nn.Embedding) and len(parts) == n_layers
        first = 0 if is_beside else n_layers
        layers |= {f"{name}.{index}.": first + index + 1 for index in range(len(parts))}
        n_layers += 0 if is_beside else len(parts)
    tables = {f"{name}." for name, part in module.named_modules() if isinstance(part, nn.Embedding | TimeEmbedding)}
    is_below, found = True, {}
    for name in names:
        layer = next((layer for prefix, layer in layers.items() if name.startswith(prefix)), None)
        is_below &= layer is None
        if layer is None:
            is_low = is_below or name.endswith("positions") or name.startswith(tuple(tables))
            layer = 0 if is_low and n_layers else n_layers + 1
        found[name] = decay ** (n_layers + 1 - layer)
    return found


def fused_parts(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of each matrix that a parameter holds, by name; only of those that hold several."""
    layers = ((name, part) for name, part in module.named_modules() if isinstance(part, FusedLinear))
    return {f"{name}.weight": part.parts for name, part in layers}


def _n_parts(name: str, parameter: Tensor, fused: Mapping[str, tuple[int, ...]]) -> int | tuple[int, ...]:
    """The `n_parts` of a parameter of a transformer's block, 0 if it is no matrix or modulates."""
    if not re.search(r"blocks?\.", name) or parameter.ndim != 2 or "modulation" in name:
        return 0
    parts = fused.get(name, (len(parameter),))
    return len(parts) if len(set(parts)) == 1 else parts
