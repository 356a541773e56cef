"""A training step with a large vocabulary: logits at masked positions against logits everywhere.

    python benchmarks/text_step.py [--batch-size 16] [--threads 2]

Both arms have the same network, batch, noise and optimizer, and run in turn in one process; the result is the
ratio of their medians. Peak memory is that of a process of its own for each arm.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import MaskedTokens, draw_times
from maskgen.processes import Absorbing
from maskgen.schedules import Linear

LENGTH, VOCABULARY = 256, 50_257
NETWORK = {"type": "mdlm", "width": 256, "depth": 6, "heads": 4, "cond_width": 128}
Loss = Callable[[nn.Module, Tensor, Rng], Tensor]


def everywhere(network: nn.Module, x_0: Tensor, rng: Rng) -> Tensor:
    """The bound with logits at all positions, weighted by zero where nothing is masked."""
    t = draw_times(len(x_0), rng, x_0.device)
    is_masked = rng.uniform(x_0.shape) < t[:, None]
    logits = network(x_0.masked_fill(is_masked, VOCABULARY), t.float()).logits
    loss = F.cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none").view_as(x_0)
    return (loss * is_masked / t[:, None]).sum().float() / x_0.numel()


def where_masked(network: nn.Module, x_0: Tensor, rng: Rng) -> Tensor:
    """The same by this package's objective."""
    objective = MaskedTokens(Absorbing(VOCABULARY, Linear(), "bernoulli"), weight="elbo")
    return objective(network, Batch(x_0), rng).value


ARMS: dict[str, Loss] = {"logits everywhere": everywhere, "logits where masked": where_masked}


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = MODELS.build(NETWORK, vocab_size=VOCABULARY)
    return network, torch.optim.AdamW(network.parameters(), lr=1e-4)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, x_0: Tensor, index: int) -> float:
    """Seconds."""
    began = time.perf_counter()
    loss(network, x_0, Rng.stream(index)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def batch(size: int) -> Tensor:
    return torch.randint(VOCABULARY, (size, LENGTH), generator=torch.Generator().manual_seed(0))


def peak(name: str, size: int, threads: int) -> float:
    """Gigabytes a process needs for three steps of one arm, PyTorch itself included."""
    torch.set_num_threads(threads)
    network, optimizer = make()
    for index in range(3):
        step(network, optimizer, ARMS[name], batch(size), index)
    # Not `ru_maxrss`: a process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = {name: make() for name in ARMS}
    x_0 = batch(options.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for index in range(options.repeats + 1):
        for name, loss in ARMS.items():
            taken = step(*pairs[name], loss, x_0, index)
            if index:  # the first warms up
                seconds[name].append(taken)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak, (name, options.batch_size, options.threads)) for name in ARMS}
    print(f"B = {options.batch_size}, L = {LENGTH}, V = {VOCABULARY:,}, {options.threads} threads")
    for name, values in seconds.items():
        print(f"{name:20}  {statistics.median(values):6.2f} s a step   {memory[name]:5.2f} GB peak")
    slow, fast = (statistics.median(values) for values in seconds.values())
    print(f"ratio: {slow / fast:.2f}")


if __name__ == "__main__":
    main()
