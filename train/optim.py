"""Optimizer and learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from maskgen.recipe import TrainSettings

_PLAIN = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm2d)


def decayed(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for: matrices and kernels, not norms, biases or embeddings."""
    names = set()
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim > 1 and not isinstance(part, _PLAIN) and name != "positions":
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def build_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with two groups: decayed and not."""
    matrices = decayed(module)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in matrices], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant or half a cosine to zero at `settings.steps`.

    A function of the step alone, so a resumed run needs no state for it.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.lr_schedule == "constant":
        return settings.lr * warm
    share = max(step - settings.warmup, 0) / max(settings.steps - settings.warmup, 1)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
