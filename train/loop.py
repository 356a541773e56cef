"""The training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen.budget import TrainSettings, learning_rate, stretch_at
from maskgen.errors import UserError
from maskgen.objectives import Objective
from maskgen.predictions import Batch
from maskgen.rng import Rng, fold

from .ema import Ema


@dataclass
class Means:
    """Sums and counts of logged values, so that means are exact whatever the batches were."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, logs: Mapping[str, Tensor]) -> None:
        for key, value in logs.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; a value that never occurred is left out."""
        pairs = {key: accelerator.reduce(value.double(), "sum") for key, value in self.sums.items()}
        self.sums = {}
        return {key: float(pair[0] / pair[1]) for key, pair in pairs.items() if pair[1] > 0}


@dataclass
class Loop:
    """Everything one step needs. Randomness is a function of (seed, step, micro-batch, rank): nothing to restore.

    Learning rate, keep ratio and micro-batches are those `settings` have for the step; `data` are of its phase.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    ema: Ema
    data: Iterator[tuple[Tensor, Tensor]]
    to_batch: Callable[[Tensor, Tensor, Rng], Batch]
    accelerator: Accelerator
    settings: TrainSettings
    seed: int
    step: int = 0

    def run(self, on_step: Callable[[int, Mapping[str, Tensor]], None], until: int | None = None) -> None:
        """Train up to a step, `settings.steps` if None; `on_step` gets the number of steps done and the step's logs."""
        self.model.train()
        while self.step < (self.settings.steps if until is None else until):
            logs = self._train_step()
            self.step += 1
            self.ema.update(self.step)
            on_step(self.step, logs)

    def _train_step(self) -> Mapping[str, Tensor]:
        """One optimizer step; the logs of its micro-batches together."""
        logs = Means()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        stretch = stretch_at(self.settings, self.step)
        n_micro, keep_ratio = stretch.accumulate, stretch.keep_ratio_at(self.step)
        for micro in range(n_micro):
            key = (self.seed, "step", self.step, micro, self.accelerator.process_index)
            torch.manual_seed(fold(*key, "dropout"))
            rng = Rng.stream(*key)
            batch = self.to_batch(*next(self.data), rng)
            is_last = micro == n_micro - 1
            with _sync(self.accelerator, self.model, is_last):
                with self.accelerator.autocast():
                    loss = self.objective(self.model, batch, rng, keep_ratio=keep_ratio)
                self.accelerator.backward(loss.value / n_micro)
            logs.add(loss.logs)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logs.sums


def _sync(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Any:
    """Gradients are exchanged in the last micro-batch only."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(model)


@torch.no_grad()
def validate(
    model: nn.Module,
    objective: Objective,
    data: Iterator[tuple[Tensor, Tensor]],
    to_batch: Callable[[Tensor, Tensor, Rng], Batch],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Means of the objective's logs over `data`, with the same noise at every call."""
    means = Means()
    for index, (x_0, labels) in enumerate(data):
        rng = Rng.stream("validation", index)
        means.add(objective(model, to_batch(x_0, labels, rng), rng).logs)
    return means.take(accelerator)


def check_finite(value: float, step: int) -> None:
    """Raises:
    UserError: the loss is NaN or infinite.
    """
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(
            f"the loss is {value} at step {step}: training has diverged; lower train.lr or raise train.warmup, then "
            "--resume from the last checkpoint"
        )
