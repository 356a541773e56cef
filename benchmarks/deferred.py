"""Training throughput with deferred patch masking against the unmasked pass, by keep ratio, tokens and mixer size.

    python benchmarks/deferred.py [--keep 0.5 0.25] [--tokens 256] [--mixer 0.17] [--output FILE.json]

Blocks of DiT-XL's shape (width 1152, 16 heads) follow a patch mixer whose width makes it a given share of the
backbone's multiply-accumulates (MicroDiT-XL: 0.17). A step is forward, backward and AdamW. Masked and unmasked steps
take turns, and every masked one is compared with the unmasked one just before it, by wall and by CPU time. The
ratio of MACs is the upper limit. `plain` is the same backbone without mixer and without dropping, which a masked step
has to beat to pay at all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskgen.core.files import write_json
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS

TOKEN = 16
Step = Callable[[], None]


def mixer_width(share: float, width: int, depth: int, mixer_depth: int, heads: int) -> int:
    """So that mixer and bridges are about this share of the backbone's MACs; a multiple of 4 heads.

    12 n w^2 + 2 W w = share 12 N W^2, for n and N blocks of widths w and W.
    """
    a, b, c, unit = 12 * mixer_depth, 2 * width, 12 * depth * width**2 * share, 4 * heads
    return max(round(((b**2 + 4 * a * c) ** 0.5 - b) / (2 * a) / unit), 1) * unit


def network(options: argparse.Namespace, side: int, masking: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    spec = {"type": "dit", "width": options.width, "depth": options.depth, "heads": options.heads, "masking": masking}
    built = MODELS.build(spec, token_width=TOKEN, grid=(side, side))
    for parameter in built.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)  # zeros would be multiplied as fast, but are not what training has
    return built


def step(built: nn.Module, n_rows: int, side: int, keep_ratio: float) -> Step:
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-4)
    rng, length = Rng.stream("deferred"), side**2
    x_t, t = rng.normal((n_rows, length, TOKEN)), torch.full((n_rows,), 500.0)
    subset = TokenSubset.draw(n_rows, length, keep_ratio, rng) if keep_ratio < 1 else None

    def run() -> None:
        built(x_t, t, subset=subset).value.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def gmacs(run: Step, n_rows: int) -> float:
    """Of a training step, a row."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 2e9 / n_rows


def timed(run: Step) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(options: argparse.Namespace, tokens: int, share: float) -> list[dict[str, Any]]:
    """A row for every keep ratio below 1, and one for the plain backbone, against the unmasked deferred pass."""
    side = round(tokens**0.5)
    width = mixer_width(share, options.width, options.depth, options.mixer_depth, options.heads)
    masking = {"type": "deferred", "depth": options.mixer_depth, "width": width, "heads": options.heads}
    built = network(options, side, masking)
    n_rows = max(options.rows_of_256 * 256 // tokens, 1)
    runs = {f"keep {keep:g}": step(built, n_rows, side, keep) for keep in options.keep if keep < 1}
    runs["plain"] = step(network(options, side, {"type": "none"}), n_rows, side, 1.0)
    unmasked = step(built, n_rows, side, 1.0)
    macs = {name: gmacs(run, n_rows) for name, run in runs.items()}  # which warms up as well
    whole, plain = gmacs(unmasked, n_rows), macs["plain"]
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            before, after = timed(unmasked), timed(run)
            seconds[name].append(after[0])
            pairs[name].append((before[0] / after[0], before[1] / after[1]))
    return [
        {
            "tokens": side**2, "mixer": round((whole - plain) / plain, 3), "mixer_width": width, "arm": name,
            "gmacs": round(macs[name], 3), "of_macs": round(whole / macs[name], 3),
            "by_wall": round(statistics.median(pair[0] for pair in pairs[name]), 3),
            "by_cpu": round(statistics.median(pair[1] for pair in pairs[name]), 3),
            "rows_per_second": round(n_rows / statistics.median(seconds[name]), 3),
            "beats_plain_by_macs": round(plain / macs[name], 3),
        }
        for name in runs
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    head = f"{'tokens':>6} {'mixer':>6}  {'arm':12} {'MACs':>6} {'wall':>6} {'CPU':>6}  {'plain / arm (MACs)':>18}"
    lines = [
        f"{row['tokens']:6} {row['mixer']:6.0%}  {row['arm']:12} {row['of_macs']:6.2f} {row['by_wall']:6.2f} "
        f"{row['by_cpu']:6.2f}  {row['beats_plain_by_macs']:18.2f}"
        for row in rows
    ]
    return "\n".join(["times faster than the unmasked pass:", head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.125])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024], help="squares")
    parser.add_argument("--mixer", type=float, nargs="+", default=[0.17], help="share of the backbone's MACs")
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the backbone")
    parser.add_argument("--mixer-depth", type=int, default=1)
    parser.add_argument("--rows-of-256", type=int, default=4, help="batch at 256 tokens; others have as many tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for share in options.mixer for tokens in options.tokens for row in compare(options, tokens, share)]
    print(table(rows))
    if options.output:
        write_json(options.output, {"threads": options.threads, "rows": rows})


if __name__ == "__main__":
    main()
