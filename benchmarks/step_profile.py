"""Where the time of a training step goes, and what share of the machine's best matrix product it reaches (MFU).

    python benchmarks/step_profile.py [RECIPE] [key=value ...] [--threads 2] [--steps 10] [--output FILE.json]

The default is the DiT of width 384 and 12 layers over 196 tokens of Fashion-MNIST. Steps are the trainer's own, with
its data, optimizer, average and log. The parts of a step are timed from outside; `matrix products` are the profiler's
own times of products, attention and convolutions in steps that are profiled, laid over forward and backward pass. MFU
is operations of products (three forward passes) a second over those of the best float32 product of 2048 x 2048 in the
same process, between the steps. CPU time is printed beside wall time; with `--threads 1` other work disturbs it least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from maskgen.core.files import write_json
from maskgen.data.loader import CounterSampler, batches
from maskgen.nn.checkpointing import recompute
from maskgen.recipes.cost import TRAINING
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import Recipe
from maskgen.train.callbacks import Log
from maskgen.train.cost_report import cost_of_system
from maskgen.train.ema import Ema
from maskgen.train.loop import Loop, Means
from maskgen.train.optim import build_optimizer
from maskgen.train.parts import Parts, build

DEFAULT = (
    *("image/fashion-dit", "model.width=384", "model.depth=12", "model.heads=6"),
    *("train.batch_size=16", "train.optimizer=adamw", "train.lr=1e-3"),
)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "attention", "linear", "mkldnn")
PEAK_SIZE = 2048


class Watch:
    """Wall and CPU seconds of named works."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = (time.perf_counter(), time.process_time())
            try:
                return work(*arguments, **options)
            finally:
                ended = (time.perf_counter(), time.process_time())
                spent = self.seconds.setdefault(name, [0.0, 0.0])
                for clock in (0, 1):
                    spent[clock] += ended[clock] - began[clock]

        return call


def trained(recipe: Recipe, watch: Watch) -> tuple[Loop, Parts]:
    """The trainer's loop with every part of a step watched."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    parts = build(recipe, accelerator)
    if recipe.train.gradient_checkpointing:
        recompute(parts.module)
    model, optimizer = accelerator.prepare(parts.module, build_optimizer(parts.module, recipe.train))
    order = CounterSampler(len(parts.train), recipe.train.batch_size // recipe.train.accumulate, recipe.seed)
    ema = Ema(parts.module, recipe.train.ema)
    for owner, name, work in (
        (accelerator, "backward", "backward"), (accelerator, "clip_grad_norm_", "clipping"),
        (optimizer, "step", "optimizer"), (optimizer, "zero_grad", "optimizer"), (ema, "update", "average"),
    ):  # fmt: skip
        setattr(owner, name, watch.timed(work, getattr(owner, name)))
    rows = batches(parts.train, order, recipe.train.workers)
    loop = Loop(
        model=model, objective=watch.timed("forward", parts.objective), optimizer=optimizer, ema=ema,
        data=iter(watch.timed("data", lambda: next(rows)), None), to_batch=watch.timed("data", parts.to_batch),
        accelerator=accelerator, settings=recipe.train, seed=recipe.seed,
    )  # fmt: skip
    return loop, parts


def logged(recipe: Recipe, home: Path, watch: Watch) -> Callable[[int, Mapping[str, torch.Tensor]], None]:
    """What the trainer does with the logs of a step."""
    log, means = Log(home, 0, recipe.train, is_main=True), Means()

    def on_step(step: int, logs: Mapping[str, torch.Tensor]) -> None:
        means.add(logs)
        log.advance()
        if step % recipe.train.log_every == 0:
            log.metrics(step, {key: float(value[0]) for key, value in means.sums.items()}, "train")

    return watch.timed("logging", on_step)


def peak(n: int = 3) -> tuple[float, float]:
    """FLOP/s of the best float32 product of n, by wall and by CPU time."""
    a, best = torch.ones(PEAK_SIZE, PEAK_SIZE), [float("inf")] * 2
    for _ in range(n):
        began = (time.perf_counter(), time.process_time())
        a @ a
        ended = (time.perf_counter(), time.process_time())
        best = [min(best[clock], ended[clock] - began[clock]) for clock in (0, 1)]
    return 2 * PEAK_SIZE**3 / best[0], 2 * PEAK_SIZE**3 / max(best[1], 1e-9) * torch.get_num_threads()


def product_share(loop: Loop, on_step: Any, steps: int) -> float:
    """Share of the profiled time of operators that products, attention and convolutions take themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loop.run(on_step, until=loop.step + steps)
    times = {one.key: one.self_cpu_time_total for one in found.key_averages() if one.key.startswith("aten::")}
    products = sum(value for key, value in times.items() if any(name in key for name in PRODUCTS))
    return products / max(sum(times.values()), 1e-9)


def measure(recipe: Recipe, steps: int, home: Path) -> dict[str, Any]:
    watch = Watch()
    loop, parts = trained(recipe, watch)
    on_step = logged(recipe, home, watch)
    cost = cost_of_system(parts.system)
    flops = 2 * TRAINING * cost.macs[None, recipe.train.lowest_keep_ratio].total * recipe.train.batch_size
    loop.run(on_step, until=2)  # the optimizer makes its state
    watch.seconds.clear()
    peaks, walls, cpus = [peak()], [], []
    for _ in range(steps):
        began = (time.perf_counter(), time.process_time())
        loop.run(on_step, until=loop.step + 1)
        walls.append(time.perf_counter() - began[0])
        cpus.append((time.process_time() - began[1]) / torch.get_num_threads())
        peaks.append(peak(1))
    spent = {name: [value / steps for value in values] for name, values in watch.seconds.items()}
    wall, cpu = statistics.mean(walls), statistics.mean(cpus)
    best = [max(values) for values in zip(*peaks, strict=True)]
    return {
        "parameters": cost.n_parameters, "gflop": flops / 1e9, "seconds": wall, "processor_seconds": cpu,
        "seconds_of": {name: values[0] for name, values in spent.items()},
        "share_of": {name: values[0] / wall for name, values in spent.items()},
        "products_of_operators": product_share(loop, on_step, 2),
        "peak_gflops": best[0] / 1e9, "mfu": flops / wall / best[0],
        "mfu_median": flops / statistics.median(walls) / best[0], "mfu_of_processor_time": flops / cpu / best[1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="step_profile", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="*", default=list(DEFAULT), help="recipe, then key=value")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source, *overrides = arguments.recipe
    recipe = load_recipe(source, [*overrides, "train.tensorboard=false"])
    with tempfile.TemporaryDirectory() as folder:
        found = {"recipe": arguments.recipe, "threads": arguments.threads} | measure(
            recipe, arguments.steps, Path(folder)
        )
    print(f"{found['parameters']:,} parameters, {found['gflop']:.1f} GFLOP a step, {found['seconds']:.3f} s")
    for name, share in sorted(found["share_of"].items(), key=lambda pair: -pair[1]):
        print(f"{name:12} {share:7.2%}")
    print(f"other        {1 - sum(found['share_of'].values()):7.2%}")
    print(f"matrix products are {found['products_of_operators']:.1%} of the operators' time")
    print(
        f"MFU {found['mfu']:.1%} of {found['peak_gflops']:.1f} GFLOP/s (median step {found['mfu_median']:.1%}, by "
        f"processor time {found['mfu_of_processor_time']:.1%})"
    )
    if arguments.output is not None:
        write_json(arguments.output, found)


if __name__ == "__main__":
    main()
