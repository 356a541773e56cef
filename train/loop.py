"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen.errors import UserError
from maskgen.objectives import Objective
from maskgen.predictions import Batch
from maskgen.recipe import TrainSettings
from maskgen.rng import Rng, fold

from .ema import Ema
from .optim import learning_rate


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
    """Everything one step needs. Randomness is a function of (seed, step, micro-batch, rank): nothing to restore."""

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

    def run(self, on_step: Callable[[int, Mapping[str, Tensor]], None]) -> None:
        """Train up to `settings.steps`; `on_step` is called with the number of steps done and their logs."""
        self.model.train()
        while self.step < self.settings.steps:
            logs = self._train_step()
            self.step += 1
            self.ema.update(self.step)
            on_step(self.step, logs)

    def _train_step(self) -> Mapping[str, Tensor]:
        """One optimizer step; the logs of its micro-batches together."""
        logs = Means()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        n_micro = self.settings.accumulate
        for micro in range(n_micro):
            key = (self.seed, "step", self.step, micro, self.accelerator.process_index)
            torch.manual_seed(fold(*key, "dropout"))
            rng = Rng.stream(*key)
            batch = self.to_batch(*next(self.data), rng)
            is_last = micro == n_micro - 1
            with _sync(self.accelerator, self.model, is_last):
                with self.accelerator.autocast():
                    loss = self.objective(self.model, batch, rng, keep_ratio=self.settings.keep_ratio)
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


class Speed:
    """Images a second since the last call."""

    def __init__(self) -> None:
        self.since, self.n_images = time.perf_counter(), 0

    def add(self, n_images: int) -> None:
        self.n_images += n_images

    def take(self) -> float:
        now = time.perf_counter()
        speed = self.n_images / max(now - self.since, 1e-9)
        self.since, self.n_images = now, 0
        return speed


def check_finite(value: float, step: int) -> None:
    """Raises:
    UserError: the loss is NaN or infinite.
    """
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(
            f"the loss is {value} at step {step}: training has diverged; lower train.lr or raise train.warmup, then "
            "--resume from the last checkpoint"
        )
