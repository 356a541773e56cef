"""The training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen.core.errors import Diverged
from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng, fold
from maskgen.core.traits import network_of
from maskgen.models.base import FollowsProgress
from maskgen.objectives import Objective, takes_progress
from maskgen.recipes.budget import TrainSettings, learning_rate, stretch_at

from .ema import Ema
from .sharding import whole


@dataclass
class Means:
    """Sums and counts of logged values, in float64, so that means are exact whatever the batches were."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, logs: Mapping[str, Tensor]) -> None:
        for key, value in logs.items():
            value = value.double()
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; a value that never occurred is left out."""
        pairs = {key: accelerator.reduce(value, "sum") for key, value in self.sums.items()}
        self.sums = {}
        return {key: float(pair[0] / pair[1]) for key, pair in pairs.items() if pair[1] > 0}

    def state(self, accelerator: Accelerator) -> dict[str, list[list[float]]]:
        """The sums of every process, for a checkpoint between two logs."""
        gathered = {key: accelerator.gather(value[None]) for key, value in self.sums.items()}
        return {key: value.cpu().tolist() for key, value in gathered.items()}

    def load(self, state: Mapping[str, list[list[float]]], accelerator: Accelerator) -> None:
        """Restore `state`; sums of another number of processes go to the first."""
        rank, world = accelerator.process_index, accelerator.num_processes
        for key, rows in state.items():
            parts = torch.tensor(rows, dtype=torch.float64, device=accelerator.device)
            mine = parts[rank] if len(parts) == world else parts.sum(0) * (rank == 0)
            self.sums[key] = mine


@dataclass
class Loop:
    """Everything one step needs. Randomness is a function of (seed, step, micro-batch, rank): nothing to restore.

    Learning rate, keep ratio and micro-batches follow `settings` at the step; `data` belong to its phase.

    Attributes:
        state: tensors of the objective beside the network's, `Objective.state`.
        skipped, skipped_in_a_row: steps whose gradient was not finite, which changed nothing.
        is_between: the weights are those after `step` whole steps; not while the optimizer changes them.
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
    state: nn.Module | None = None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    is_between: bool = True
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def run(self, on_step: Callable[[int, Mapping[str, Tensor]], None], until: int | None = None) -> None:
        """Train up to a step, `settings.steps` if None; `on_step` gets the number of steps done and the step's logs.

        Raises:
            Diverged: `skip_limit` steps in a row had no finite gradient; `rows` are those of the last one.
        """
        self.model.train()
        while self.step < (self.settings.steps if until is None else until):
            logs, is_finite = self._train_step()
            self.step += 1
            self._count(is_finite)
            if is_finite:
                self.ema.update(self.step)
            self.is_between = True
            on_step(self.step, logs)

    def _train_step(self) -> tuple[Mapping[str, Tensor], bool]:
        """One optimizer step: the logs of its micro-batches together; skipped, without logs, if it is not finite."""
        logs = Means()
        self._buffers = _persistent_buffers(self.model)
        if self.state is not None:
            self._buffers += _persistent_buffers(self.state)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings) * group["scale"]
        stretch = stretch_at(self.settings, self.step)
        n_micro, keep_ratio = stretch.accumulate, stretch.keep_ratio_at(self.step)
        arguments: dict[str, float] = {"keep_ratio": keep_ratio}
        network: object = network_of(self.model)
        if isinstance(network, FollowsProgress):
            network.follow(self.step / self.settings.steps)
        if takes_progress(self.objective):
            arguments["progress"] = self.step / self.settings.steps
        self.rows.clear()
        for micro in range(n_micro):
            x_0, labels = self._next_rows()
            rng = self._rng(micro, len(x_0))
            batch = self.to_batch(x_0, labels, rng)
            is_last = micro == n_micro - 1
            with _sync(self.accelerator, self.model, is_last):
                with self.accelerator.autocast():
                    loss = self.objective(self.model, batch, rng, **arguments)
                self.accelerator.backward(loss.value / n_micro)
            logs.add(loss.logs)
        norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip))
        is_finite = bool(torch.isfinite(norm))  # gradients are reduced: every process decides alike
        if is_finite:
            logs.add({"grad_norm": torch.stack([norm.detach(), torch.ones_like(norm)])})
            self.is_between = False
            self.optimizer.step()
        else:
            self.undo()
        self.optimizer.zero_grad()
        return (logs.sums if is_finite else {}), is_finite

    def undo(self) -> None:
        """Restore the buffers that the forward pass of the step changed: running statistics, a codebook, a teacher."""
        for buffer, before in self._buffers:
            buffer.copy_(before)

    def _rng(self, micro: int, n_rows: int) -> Rng:
        """Noise of the rows of a micro-batch: a function of seed, step and row, not of the process that computes it.

        Dropout is drawn by the network, so its masks depend on the process.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        key = (self.seed, "step", self.step, micro)
        torch.manual_seed(fold(*key, rank, "dropout"))
        return Rng.rows(*key, first=rank * n_rows, count=n_rows, total=world * n_rows)

    def _next_rows(self) -> tuple[Tensor, Tensor]:
        rows = next(self.data)
        self.rows.append(rows)
        return rows

    def _count(self, is_finite: bool) -> None:
        self.skipped += not is_finite
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        if self.settings.skip_limit and self.skipped_in_a_row >= self.settings.skip_limit:
            raise Diverged(
                f"the loss or its gradient was NaN or infinite in {self.skipped_in_a_row} steps in a row, up to step "
                f"{self.step}: lower train.lr or raise train.warmup"
            )


def _persistent_buffers(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers that checkpoints store, each with a copy; constants are left out."""
    pairs = []
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                pairs.append((buffer, buffer.clone()))
    return pairs


def _sync(accelerator: Accelerator, model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[object]:
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
