"""What a run must remember to go on as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.checkpoint import MODEL, TRAINING, Checkpoint, checkpoints_in, write_checkpoint
from maskgen.recipe import Recipe

from .ema import Ema


def save(
    directory: Path,
    step: int,
    recipe: Recipe,
    module: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> Path:
    """Write `checkpoint-<step>` with averaged weights for use, raw ones and the optimizer's state for resuming."""
    path = directory / f"checkpoint-{step}"
    training = {f"model.{name}": value for name, value in module.state_dict().items()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            training[f"optimizer.{names[id(parameter)]}.{key}"] = value
    write_checkpoint(path, recipe, {MODEL: ema.state_dict(), TRAINING: training}, {"step": step, **facts}, directory)
    return path


def restore(checkpoint: Checkpoint, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    """Put a saved state back into freshly built parts."""
    training = checkpoint.tensors(TRAINING)
    module.load_state_dict({key[6:]: value for key, value in training.items() if key.startswith("model.")})
    ema.load(checkpoint.tensors(MODEL))
    for name, parameter in module.named_parameters():
        prefix = f"optimizer.{name}."
        state: dict[str, Tensor] = {k[len(prefix) :]: v for k, v in training.items() if k.startswith(prefix)}
        if state:
            # Adam's step counters live on the CPU, its moments beside the parameter.
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in checkpoints_in(directory)[:-keep]:
        shutil.rmtree(path)
