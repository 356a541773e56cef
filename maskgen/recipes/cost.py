"""What a recipe costs: multiply-accumulates of an image by keep ratio and stage, operations in all, hours on a GPU.

Counted by `torch.utils.flop_counter` on the meta device, so the largest network takes no memory and no time. Matrix
products, convolutions and attention count, norms and activations do not; one multiply-accumulate (MAC) is two
operations (FLOPs); a backward pass counts as two forward passes, so training is three.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config
from torch.utils.flop_counter import FlopCounterMode

from maskgen.core.errors import UserError
from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.objectives import Objective
from maskgen.recipes.budget import TrainSettings, plan
from maskgen.recipes.build import System
from maskgen.tokenizers import ImageTokenizer

TRAINING = 3
"""Forward passes that a training step is worth."""

GPUS: Mapping[str, float] = {
    "t4": 65e12, "v100": 125e12, "l4": 121e12, "3090": 71e12, "4090": 165e12, "l40s": 362e12, "a100": 312e12,
    "h100": 989e12, "h200": 989e12, "b200": 2250e12, "mi300x": 1307e12,
}  # fmt: skip
"""Peak FLOP/s of dense half-precision matrix products (bf16, fp16 of T4 and V100), from the makers' data sheets."""


@dataclass(frozen=True)
class Subject:
    """A network and its objective, with what their batches look like; on the meta device if only counted.

    Attributes:
        shape: of a sample: tokens (L,) or (L, D), an image (C, H, W).
        layout: of tokens; None for images.
        n_classes: 0 without labels.
        caption_shape: (S, C) of embedded captions, None without.
    """

    network: nn.Module
    objective: Objective
    shape: tuple[int, ...]
    layout: TokenLayout | None = None
    n_classes: int = 0
    caption_shape: tuple[int, int] | None = None

    def batch(self, n: int, device: torch.device | str) -> Batch:
        """n random samples on a device."""
        rng = Rng.stream("cost")
        x_0 = rng.uniform((n, *self.shape)).float()
        if self.layout is not None and self.layout.has_discrete_tokens:
            x_0 = self.layout.join(
                {
                    stream.name: (x_0[:, place] * stream.vocab_size).long().clamp(max=stream.vocab_size - 1)
                    for stream, place in zip(self.layout.streams, self.layout.places, strict=True)
                }
            )
        labels = (rng.uniform((n,)) * self.n_classes).long().to(device)
        if self.caption_shape is not None:
            return Batch(x_0.to(device), Condition(labels, torch.zeros(n, *self.caption_shape, device=device)))
        view = None if self.objective.contrastive is None else x_0.to(device)
        return Batch(x_0.to(device), Condition(labels) if self.n_classes else None, view=view)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample in a forward pass of training, `stages` by the network's own parts.

    `other` are those in no part: of functions that are called with a part's weights, say.
    """

    total: float
    stages: Mapping[str, float] = field(default_factory=dict)


def subject(system: System) -> Subject:
    """What a system trains."""
    facts = system.facts
    return Subject(
        system.network, system.objective, system.sample_shape, system.layout, facts.n_classes, facts.caption_shape
    )


def count(what: Subject, keep_ratio: float = 1.0) -> Macs:
    """MACs of a training sample's forward pass at a keep ratio: all passes its objective makes of the network.

    A head that runs on masked positions only is counted at all positions.

    Args:
        what: with its network on the meta device, unless it is a tokenizer.
    """
    network, n = what.network, 1
    network.train(not isinstance(network, ImageTokenizer))  # a codebook would learn
    batch = what.batch(n, next(network.parameters()).device)
    config: Any = _config
    everywhere = config.patch(meta_nonzero_assume_all_nonzero=True)
    with everywhere, torch.no_grad(), FlopCounterMode(display=False) as counter:
        what.objective(network, batch, Rng.stream("cost"), keep_ratio=keep_ratio)
    counts = {name: sum(operators.values()) / 2 / n for name, operators in counter.get_flop_counts().items()}
    paths = {tuple(name.split(".")): macs for name, macs in counts.items()}
    # A mask strategy that asks the network calls its parts, not itself: that pass is in the rest. It has no backward
    # pass, which a run's total gives it all the same.
    stages = _stages(network, {path[1:]: macs for path, macs in paths.items() if path[0] == type(network).__name__})
    total = counter.get_total_flops() / 2 / n
    rest = total - sum(stages.values())
    return Macs(total, {**stages, "other": rest} if rest > 1e-3 * total else stages)


def _stages(network: nn.Module, macs: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """MACs of the network's parts, by paths of called modules; a part with nine tenths of all by its own parts.

    A list of modules is never called itself, so its members stand for it.
    """
    found: dict[str, float] = {}
    for path, value in macs.items():
        if path and value and _is_part(network, path):
            found[path[0]] = found.get(path[0], 0.0) + value
    for name, value in found.items():
        inside = {path[1:]: macs for path, macs in macs.items() if path[:1] == (name,)}
        module = getattr(network, name)
        finer = {} if isinstance(module, nn.ModuleList | nn.ModuleDict) else _stages(module, inside)
        if value > 0.9 * sum(found.values()) and len(finer) > 1:
            rest = {key: macs for key, macs in found.items() if key != name}
            return {**rest, **{f"{name}.{key}": macs for key, macs in finer.items()}}
    return found


def _is_part(network: nn.Module, path: tuple[str, ...]) -> bool:
    """Whether a path is one part of the network: `blocks.0` is one of the list `blocks`, `blocks.0.mlp` is inside."""
    module = network
    for depth, name in enumerate(path, 1):
        module = getattr(module, name)
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return depth == len(path)
    return False


def total_flops(settings: TrainSettings, macs: Mapping[tuple[int | None, float], Macs]) -> float:
    """Operations of a whole training run; `macs` by resolution and keep ratio, as `ratios` lists them."""
    flops = 0.0
    for stretch in plan(settings):
        for ratio, steps in stretch.keep_ratios.items():
            flops += 2 * TRAINING * macs[stretch.resolution, ratio].total * steps * stretch.batch_size
    return flops


def ratios(settings: TrainSettings) -> list[tuple[int | None, float]]:
    """The resolutions and keep ratios that occur in a run, in their order."""
    return list(dict.fromkeys((one.resolution, ratio) for one in plan(settings) for ratio in one.keep_ratios))


def gpu_hours(flops: float, gpu: str, mfu: float) -> float:
    """Hours of one GPU at a share `mfu` of its peak.

    Raises:
        UserError: a GPU that is not in the table, or a share outside (0, 1].
    """
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: unknown; choose from {', '.join(GPUS)}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu must be in (0, 1], got {mfu}")
    return flops / (GPUS[gpu] * mfu) / 3600


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def measure(what: Subject, batch_size: int, keep_ratio: float, steps: int) -> float:
    """Training samples a second on this machine: forward and backward passes of random samples, the first left out."""
    device = next(what.network.parameters()).device
    batch = what.batch(batch_size, device)
    began = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        what.objective(what.network.train(), batch, Rng.stream(step), keep_ratio=keep_ratio).value.backward()
        what.network.zero_grad()
    return batch_size * steps / (time.perf_counter() - began)


@dataclass(frozen=True)
class Cost:
    """What a training run takes: MACs of a sample by (resolution, keep ratio), unmasked ones and others to compare."""

    settings: TrainSettings
    n_parameters: int
    macs: Mapping[tuple[int | None, float], Macs]

    @property
    def flops(self) -> float:
        return total_flops(self.settings, self.macs)

    @property
    def unmasked_flops(self) -> float:
        """The same steps and batches without dropped tokens."""
        return sum(
            2 * TRAINING * self.macs[one.resolution, 1.0].total * len(one) * one.batch_size
            for one in plan(self.settings)
        )

    def tree(self) -> dict[str, object]:
        """For JSON."""
        rows = [
            {"resolution": resolution, "keep_ratio": ratio, "macs": macs.total, "stages": dict(macs.stages)}
            for (resolution, ratio), macs in self.macs.items()
        ]
        return {"parameters": self.n_parameters, "flops": self.flops, "macs_per_sample": rows}


def cost_of(settings: TrainSettings, subjects: Mapping[int | None, Subject], others: Sequence[float] = ()) -> Cost:
    """The cost of a run whose network at each of its resolutions is given; `others` are keep ratios to compare."""
    first = next(iter(subjects.values()))
    wanted = ratios(settings) + [(resolution, ratio) for resolution in subjects for ratio in (1.0, *others)]
    macs = {(resolution, ratio): count(subjects[resolution], ratio) for resolution, ratio in dict.fromkeys(wanted)}
    return Cost(settings, parameters(first.network), macs)


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of float32 matrix products on a device: what a training step is measured against; measured once."""
    return _matmul_peak(device, torch.get_num_threads())


@cache
def _matmul_peak(device: torch.device, _threads: int, size: int = 1024, n: int = 3) -> float:
    """The best of n products."""
    a, best = torch.ones(size, size, device=device), float("inf")
    for _ in range(n):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
