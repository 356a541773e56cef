"""A training step of MDTv2-S/2: a full and a dropped pass over latents of 256 x 256 images, beside the public model's.

    python benchmarks/mdt_step.py [--public DIR] [--threads 2] [--repeats 5] [--output FILE.json]

DIR is a checkout of the public code (github.com/sail-sg/MDT; needs `timm`), which is imported from there and nowhere
else. Both arms have the same sizes, batch, loss (eps with min-SNR 5, learned variance) and AdamW, each as its trainer
makes it, and take turns in one process; so does a product of two matrices, which says what the machine can do. Beside
a busy machine's wall time stands the process's CPU time, which with `--threads 1` others disturb least.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgen.core.files import write_json
from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import Denoising
from maskgen.objectives.weights import MinSnr
from maskgen.processes import Gaussian
from maskgen.recipes.budget import TrainSettings
from maskgen.tokenizers.image.patches import patchify
from maskgen.train.optim import build_optimizer

SIZES: dict[str, dict[str, Any]] = {
    "S": {"width": 384, "depth": 12, "heads": 6, "decoder": 6, "side": 32},
    "tiny": {"width": 16, "depth": 4, "heads": 2, "decoder": 2, "side": 8},
}
CLASSES, CHANNELS, PATCH = 1000, 4, 2
Step = Callable[[int], None]


def optimised(loss: Callable[[int], torch.Tensor], optimizer: torch.optim.Optimizer) -> Step:
    def step(index: int) -> None:
        loss(index).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(sizes: dict[str, Any], latents: torch.Tensor, labels: torch.Tensor) -> Step:
    torch.manual_seed(0)
    spec = {key: sizes[key] for key in ("width", "depth", "heads")}
    masking = {"type": "mdt", "version": 2, "depth": sizes["decoder"]}
    network = MODELS.build(
        {"type": "dit", **spec, "masking": masking, "has_variance": True, "positions": "learned"},
        token_width=CHANNELS * PATCH**2, grid=(sizes["side"] // PATCH,) * 2, n_classes=CLASSES,
    )  # fmt: skip
    objective = Denoising(Gaussian(target="eps", steps=1000), MinSnr(), keep_spread=0.2)
    batch = Batch(patchify(latents, PATCH), Condition(labels))
    optimizer = build_optimizer(network.train(), TrainSettings(lr=1e-4, weight_decay=0))
    return optimised(lambda index: objective(network, batch, Rng.stream(index), keep_ratio=0.7).value, optimizer)


def public(folder: Path, sizes: dict[str, Any], latents: torch.Tensor, labels: torch.Tensor) -> Step:
    """The model and the losses of a checkout, in the step its trainer takes."""
    sys.path.insert(0, str(folder))
    package, models = (importlib.import_module(name) for name in ("masked_diffusion", "masked_diffusion.models"))
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its mask ratio
        network = models.MDTv2(
            input_size=sizes["side"], patch_size=PATCH, in_channels=CHANNELS, hidden_size=sizes["width"],
            depth=sizes["depth"], num_heads=sizes["heads"], num_classes=CLASSES, mask_ratio=0.3,
            decode_layer=sizes["decoder"],
        )  # fmt: skip
    diffusion = package.create_diffusion("", learn_sigma=True)

    def loss(index: int) -> torch.Tensor:
        torch.manual_seed(index)
        t = torch.randint(0, 1000, (len(latents),))
        passes = ({"y": labels}, {"y": labels, "enable_mask": True})
        values = [diffusion.training_losses(network, latents, t, model_kwargs=given)["loss"].mean() for given in passes]
        return torch.stack(values).sum()

    return optimised(loss, torch.optim.AdamW(network.train().parameters(), lr=1e-4, weight_decay=0))


def peak(side: int) -> Step:
    """A product of two square matrices."""
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0))

    def step(index: int) -> None:  # noqa: ARG001
        matrix @ matrix

    return step


def timed(step: Step, index: int) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step(index)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(arms: dict[str, Step], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Every arm in turn, the first time to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for index in range(repeats + 1):
        for name, step in arms.items():
            taken = timed(step, index)
            if index:
                found[name].append(taken)
    return found


def operations(step: Step) -> float:
    """GFLOP of one step: products of matrices, two for a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter:
        step(0)
    return float(counter.get_total_flops()) / 1e9


def summary(
    found: dict[str, list[tuple[float, float]]], gflop: float, peak_gflop: float, threads: int
) -> dict[str, Any]:
    """Medians of the arms by both clocks, and of the ratios of steps that followed each other."""
    seconds = {
        name: [statistics.median(taken[clock] for taken in times) for clock in (0, 1)] for name, times in found.items()
    }
    best = peak_gflop / min(wall for wall, _ in found["matrix product"])
    report: dict[str, Any] = {"gflop": gflop, "peak_gflops": best, "threads": threads, "seconds": seconds}
    report["gflops"] = gflop / seconds["maskgen"][0]
    report["share_of_peak"] = report["gflops"] / best
    report["share_of_peak_by_cpu_time"] = (gflop / seconds["maskgen"][1]) / (peak_gflop / seconds["matrix product"][1])
    if "public" in found:
        pairs = list(zip(found["public"], found["maskgen"], strict=True))
        report["ratio"] = [statistics.median(theirs[clock] / us[clock] for theirs, us in pairs) for clock in (0, 1)]
    return report


def table(report: dict[str, Any]) -> str:
    lines = [f"{'':16}  wall s   CPU s"]
    lines += [f"{name:16}  {wall:6.2f}  {cpu:6.2f}" for name, (wall, cpu) in report["seconds"].items()]
    if "ratio" in report:
        lines.append(f"{'public / maskgen':16}  {report['ratio'][0]:6.2f}  {report['ratio'][1]:6.2f}")
    lines.append(
        f"{report['gflop']:.0f} GFLOP a step, {report['gflops']:.0f} GFLOP/s on {report['threads']} threads: "
        f"{report['share_of_peak']:.0%} of the best matrix product "
        f"({report['share_of_peak_by_cpu_time']:.0%} by CPU time)"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--public", type=Path, metavar="DIR", help="a checkout of the public code")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes, generator = SIZES[options.size], torch.Generator().manual_seed(0)
    latents = torch.randn(options.batch_size, CHANNELS, sizes["side"], sizes["side"], generator=generator)
    labels = torch.randint(CLASSES, (options.batch_size,), generator=generator)
    side = 2048 if options.size == "S" else 256
    arms = {"maskgen": ours(sizes, latents, labels), "matrix product": peak(side)}
    if options.public:
        arms = {"public": public(options.public, sizes, latents, labels)} | arms
    gflop = operations(arms["maskgen"])
    report = summary(measure(arms, options.repeats), gflop, 2 * side**3 / 1e9, options.threads)
    print(table(report))
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()
