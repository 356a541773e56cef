"""The training state of a checkpoint: everything an exact resume needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.checkpoints.checkpoint import (
    MODEL,
    TRAINING,
    Checkpoint,
    CheckpointError,
    checkpoints_in,
    read_checkpoint,
    write_checkpoint,
)
from maskgen.recipes.budget import TrainSettings
from maskgen.recipes.schema import Recipe
from maskgen.recipes.shipped import INFO

from .ema import Ema
from .sharding import gathered, like


def collect(
    module: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    objective: nn.Module | None = None,
    *,
    is_kept: bool = True,
    has_base: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file: averaged weights for use, the rest for resuming.

    The rest are raw weights, the optimizer's state and the objective's own tensors (`Objective.state`).
    With a base, frozen parameters are left out: they are its. With sharded parameters all processes must call; one that
    does not keep the tensors gets none.
    """
    below = {name for name, p in module.named_parameters() if has_base and not p.requires_grad}
    training = {f"model.{name}": value for name, value in module.state_dict().items() if name not in below}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            training[f"optimizer.{names[id(parameter)]}.{key}"] = value
    if objective is not None:
        training |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    averaged = {name: value for name, value in ema.state_dict().items() if name not in below}
    files = {MODEL: averaged, TRAINING: training}
    return {name: gathered(tensors, is_kept=is_kept) for name, tensors in files.items()}


def save(
    directory: Path, step: int, recipe: Recipe, tensors: dict[str, dict[str, Tensor]], facts: dict[str, object]
) -> Path:
    """Write `checkpoint-<step>`."""
    path = directory / f"checkpoint-{step}"
    write_checkpoint(path, recipe, tensors, {"step": step, **facts}, directory)
    return path


def restore(
    checkpoint: Checkpoint,
    module: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    objective: nn.Module | None = None,
) -> None:
    """Load a saved state into newly built parts."""
    training = checkpoint.tensors(TRAINING)
    now = module.state_dict()
    raw = {key[6:]: value for key, value in training.items() if key.startswith("model.")}
    below = now if "base" in checkpoint.info else {}  # what a checkpoint of low-rank changes does not hold
    module.load_state_dict(below | {key: like(value, now[key]) if key in now else value for key, value in raw.items()})
    ema.load(checkpoint.tensors(MODEL))
    if objective is not None:
        objective.load_state_dict({key[10:]: value for key, value in training.items() if key.startswith("objective.")})
    for name, parameter in module.named_parameters():
        prefix = f"optimizer.{name}."
        state: dict[str, Tensor] = {k[len(prefix) :]: v for k, v in training.items() if k.startswith(prefix)}
        if state:
            # Adam's step counters live on the CPU, its moments beside the parameter.
            optimizer.state[parameter] = {k: v if k == "step" else like(v, parameter) for k, v in state.items()}


def newest_whole(directory: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest complete checkpoint, and the errors of newer ones."""
    faults: dict[Path, str] = {}
    for path in reversed(checkpoints_in(directory)):
        try:
            checkpoint = read_checkpoint(path)
            checkpoint.verify()
            if TRAINING not in checkpoint.info["files"]:
                raise CheckpointError(f"{path} has no {TRAINING}: it was exported for use and cannot be resumed")
        except (CheckpointError, OSError) as error:  # a disk that cannot read one may still read another
            faults[path] = str(error)
        else:
            return checkpoint, faults
    return None, faults


def set_aside(paths: Iterable[Path]) -> None:
    """Rename damaged checkpoints so that neither retention nor loading counts them. Requires the lock."""
    for path in paths:
        aside = path.with_name(f".bad-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def clean(directory: Path) -> None:
    """Remove partial checkpoints of killed runs. Requires the lock of the directory."""
    for path in directory.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(directory: Path, settings: TrainSettings, written: Path | None = None) -> None:
    """Remove checkpoints except the newest few, those of every n-th step, and the best by a validation value.

    The one just written always stays.
    """
    paths = checkpoints_in(directory)
    kept = {*paths[-settings.keep_checkpoints :], written}
    if settings.keep_every:
        kept |= {path for path in paths if int(path.name.split("-")[1]) % settings.keep_every == 0}
    best = best_of(paths, settings)
    for path in paths:
        if path not in kept and path != best:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill on the way leaves one that `clean` finds, never a part of one under its name."""
    if path.is_symlink():
        path.unlink()
        return
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)


def best_of(paths: Sequence[Path], settings: TrainSettings) -> Path | None:
    """The checkpoint with the best value of `keep_best`, the earlier of equals; None without a rule or a value."""
    if settings.keep_best is None:
        return None
    sign = 1 if settings.keep_best.mode == "min" else -1
    scores = {path: sign * score for path in paths if (score := _score(path, settings.keep_best.metric)) is not None}
    return min(scores, key=lambda path: scores[path], default=None)


def _score(path: Path, metric: str) -> float | None:
    try:
        value = json.loads((path / INFO).read_text(encoding="utf-8"))["validation"].get(metric)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return None if value is None or value != value else float(value)
