"""An encoder that sees visible patches only (MAE) against one that sees [MASK]s too (SimMIM), by work and by time.

    python benchmarks/visible.py [--size base] [--tokens 196] [--mask 0.75] [--output FILE.json]

All arms have the same encoder, data and mask ratio; a step is forward, backward and AdamW on random patches. MAE has
its decoder besides, of half the encoder's width and a third of its depth, CrossMAE one by cross-attention, all or a
third of the masked patches decoded. `SimMIM` is the full encoder with a linear head, `full + decoder` has MAE's decoder
after it, as MAE's authors compare. Arms take turns; each step is held against SimMIM's just before it, by wall and by
CPU time. Beside it stand the multiply-accumulates of the encoder and of all, a training sample's, as `maskgen cost`
counts them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from maskgen.core.files import write_json
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import MaskedRegression
from maskgen.processes import Absorbing
from maskgen.recipes.cost import Macs, Subject, count
from maskgen.schedules import Fixed

SIZES = {"fashion": (96, 4, 3), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth, heads: of image/fashion-mae, and ViT's."""

BASELINE = "SimMIM"
Step = Callable[[], None]


class Arm(NamedTuple):
    """How a model is built, beside the encoder, and its objective."""

    switches: dict[str, Any]
    decode_ratio: float = 1.0


def arms(width: int, depth: int, heads: int) -> dict[str, Arm]:
    """MAE, CrossMAE and the full encoders, their decoders half as wide and a third as deep as the encoder."""
    decoder = {"width": width // 2, "depth": max(depth // 3, 1), "heads": heads}
    joint, cross = {"type": "joint", **decoder}, {"type": "cross", **decoder}
    return {
        BASELINE: Arm({"encoder_sees": "all", "decoder": "linear"}),
        "MAE": Arm({"decoder": joint}),
        "CrossMAE": Arm({"decoder": cross}),
        "CrossMAE, a third": Arm({"decoder": cross}, 1 / 3),
        "full + decoder": Arm({"encoder_sees": "all", "decoder": joint}),
    }


def build(options: argparse.Namespace, arm: Arm) -> nn.Module:
    width, depth, heads = SIZES[options.size]
    side = round(options.tokens**0.5)
    spec = {"type": "mae", "width": width, "depth": depth, "heads": heads, **arm.switches}
    return MODELS.build(spec, token_width=options.token_width, grid=(side, side))


def subject(options: argparse.Namespace, network: nn.Module, arm: Arm) -> Subject:
    objective = MaskedRegression(Absorbing(0, Fixed(options.mask)), decode_ratio=arm.decode_ratio)
    return Subject(network, objective, (round(options.tokens**0.5) ** 2, options.token_width))


def macs_of(options: argparse.Namespace, arm: Arm) -> Macs:
    with torch.device("meta"):
        network = build(options, arm)
    return count(subject(options, network, arm))


def step(options: argparse.Namespace, arm: Arm) -> Step:
    torch.manual_seed(0)
    what = subject(options, build(options, arm), arm)
    optimizer = torch.optim.AdamW(what.network.parameters(), lr=1e-4)
    batch = what.batch(options.batch_size, "cpu")

    def run() -> None:
        what.objective(what.network, batch, Rng.stream("visible")).value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def timed(run: Step) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row an arm, against SimMIM."""
    every = arms(*SIZES[options.size])
    counted = {name: macs_of(options, arm) for name, arm in every.items()}
    runs = {name: step(options, arm) for name, arm in every.items()}
    for run in runs.values():
        run()  # the first step allocates
    pairs: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            if name != BASELINE:
                pairs[name].append((timed(runs[BASELINE]), timed(run)))
    pairs[BASELINE] = [(full, full) for full, _ in pairs["MAE"]]
    full = counted[BASELINE]
    return [
        {
            "arm": name,
            "encoder_of_full": round(counted[name].stages["encoder"] / full.stages["encoder"], 4),
            "gmacs": round(counted[name].total / 1e9, 4),
            "by_macs": round(full.total / counted[name].total, 3),
            "by_wall": round(statistics.median(before[0] / after[0] for before, after in both), 3),
            "by_cpu": round(statistics.median(before[1] / after[1] for before, after in both), 3),
            "cpu_seconds_a_step": round(statistics.median(after[1] for _, after in both), 4),
        }
        for name, both in pairs.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    head = f"{'':18} {'encoder':>8} {'GMACs':>8}  {'by MACs':>8} {'by wall':>8} {'by CPU':>8}  {'CPU s a step':>12}"
    lines = [
        f"{row['arm']:18} {row['encoder_of_full']:8.3f} {row['gmacs']:8.3f}  {row['by_macs']:8.2f} "
        f"{row['by_wall']:8.2f} {row['by_cpu']:8.2f}  {row['cpu_seconds_a_step']:12.3f}"
        for row in rows
    ]
    return "\n".join(["encoder's work of the full pass's, and how many times faster than SimMIM:", head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--tokens", type=int, default=196, help="a square")
    parser.add_argument("--token-width", type=int, default=768, help="numbers a patch has")
    parser.add_argument("--mask", type=float, default=0.75)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = compare(options)
    print(table(rows))
    if options.output:
        write_json(options.output, {"threads": options.threads, "batch_size": options.batch_size, "rows": rows})


if __name__ == "__main__":
    main()
