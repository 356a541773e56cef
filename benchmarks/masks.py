"""Pictures and times of the mask strategies: `python benchmarks/masks.py --output docs/images/masks.png`.

Every strategy masks 75 % of three grids, three rows of each; masked tokens are dark. The two that use a
network get scores that are highest in the middle of the picture; `hard` is at the end of its run. Prints the
CPU seconds of 1,000 masks of each, drawn 64 at a time, and with `--steps N` what a training step of fashion-mae
costs with it relative to random masks: forward and backward passes, interleaved, the median of N ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from maskgen.core.files import atomic
from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.recipes.load import load_recipe
from maskgen.strategies import STRATEGIES, Guide, MaskStrategy

GRIDS = [(7, 7), (14, 14), (16, 16)]
RATIO, EXAMPLES, BATCH, REPEATS = 0.75, 3, 64, 7
ROWS: dict[str, dict[str, Any]] = {
    "random": {"type": "random"},
    "block": {"type": "block"},
    "grid": {"type": "grid"},
    **{f"color: {name}": {"type": "color", "color": name} for name in ("low", "high", "band", "stop")},
    "attention": {"type": "attention"},
    "attention\nwithout hints": {"type": "attention", "hints": 0.0},
    "hard": {"type": "hard"},
}
"""Label and spec of what is drawn."""


def middle(grid: tuple[int, int], n_rows: int) -> Guide:
    """What stands in for a network's answer: the nearer to the middle, the higher."""
    y, x = (torch.linspace(-1, 1, size) for size in grid)
    return Guide(-(y[:, None].square() + x.square()).flatten().expand(n_rows, -1), progress=1.0)


def masks(strategy: MaskStrategy, grid: tuple[int, int], n_rows: int, seed: int = 0) -> Tensor:
    """(n_rows, L) bool."""
    return strategy.mask(RATIO, n_rows, grid, Rng.stream(seed), middle(grid, n_rows))


def seconds(strategy: MaskStrategy, grid: tuple[int, int]) -> float:
    """CPU seconds of 1,000 masks, the median of some batches."""
    taken = []
    for seed in range(REPEATS):
        start = time.process_time()
        masks(strategy, grid, BATCH, seed)
        taken.append(time.process_time() - start)
    return statistics.median(taken) * 1000 / BATCH


def training_step(strategy: str, batch: Batch) -> Callable[[int], float]:
    """Processor seconds of a forward and backward pass of fashion-mae, with noise of a seed."""
    more = ["model.has_difficulty=true"] if strategy == "hard" else []
    recipe = load_recipe("fashion-mae", [f"process.strategy={strategy}", *more])
    network = recipe.build_model(token_width=batch.x_0.shape[2], grid=GRIDS[0])
    objective: Any = recipe.build_objective(TokenLayout.of(Stream("image", "image", 0, GRIDS[0], batch.x_0.shape[2])))

    def step(seed: int) -> float:
        start = time.process_time()
        objective(network, batch, Rng.stream(seed), progress=0.5).value.backward()
        network.zero_grad()
        return time.process_time() - start

    return step


def print_steps(repeats: int, n_rows: int) -> None:
    """How long a training step takes by each strategy, in steps with random masks."""
    batch = Batch(Rng.stream("images").normal((n_rows, GRIDS[0][0] * GRIDS[0][1], 16)))
    steps = {name: training_step(name, batch) for name in STRATEGIES.names()}
    for step in steps.values():
        step(0)
    rounds = [{name: step(seed) for name, step in steps.items()} for seed in range(repeats)]
    print(
        f"a training step of fashion-mae, {statistics.median(row['random'] for row in rounds):.3f} s with random masks"
    )
    for name in steps:
        print(f"{name}: {statistics.median(row[name] / row['random'] for row in rounds):.2f}")


def picture() -> Figure:
    """A line a strategy, the grids side by side."""
    figure = Figure((10, 1.05 * len(ROWS)), layout="constrained")
    panels = figure.subplots(len(ROWS), EXAMPLES * len(GRIDS))
    for line, (name, spec) in zip(panels, ROWS.items(), strict=True):
        drawn = [mask.view(grid) for grid in GRIDS for mask in masks(STRATEGIES.build(spec), grid, EXAMPLES)]
        for axes, mask in zip(line, drawn, strict=True):
            axes.imshow(mask, cmap="gray_r", vmin=0, vmax=1.25)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for index, grid in enumerate(GRIDS):
        panels[0][index * EXAMPLES + EXAMPLES // 2].set_title(f"{grid[0]} x {grid[1]} tokens")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("masks.png"))
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128, help="of the training steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("CPU seconds of 1,000 masks on " + ", ".join(f"{h} x {w}" for h, w in GRIDS))
    for name, spec in ROWS.items():
        strategy = STRATEGIES.build(spec)
        times = ", ".join(f"{seconds(strategy, grid):.4f}" for grid in GRIDS)
        print(f"{name.replace(chr(10), ' ')}: {times}")
    if options.steps:
        print_steps(options.steps, options.batch_size)
    with atomic(options.output) as file:
        picture().savefig(file, format="png", dpi=100)


if __name__ == "__main__":
    main()
