"""Savings of the decoding loop, as ratios measured in one run: `python benchmarks/decoding.py [--threads N]`.

Three things are compared, each pair interleaved and repeated, medians of CPU seconds:
logits at masked positions only against logits everywhere; guidance in an interval against everywhere; and the share
of the loop that is random draws (one generator a row).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.models.maskgit import MaskGIT
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance

BATCH, VOCAB, GRID, STEPS = 64, 512, (7, 7), 16


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, a: Callable[[], object], b: Callable[[], object], repeats: int) -> None:
    """Print median seconds of both and the median of the pairwise ratios a / b."""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(repeats)]
    ratio = statistics.median(x / y for x, y in pairs)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name}: {first:.2f} s against {second:.2f} s of CPU time, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = MaskGIT(VOCAB, GRID, 10).eval().requires_grad_(False)
    cond = Condition(torch.arange(BATCH) % 10)
    x_1 = torch.full((BATCH, GRID[0] * GRID[1]), VOCAB)

    def everywhere(x_t: torch.Tensor, t: torch.Tensor, cond: Condition | None, *, where: torch.Tensor) -> Categorical:
        whole = network(x_t, t, cond)
        return Categorical(whole.logits[where], where)

    def decode(denoiser: Callable[..., Categorical], guidance: Guidance, sampler: str = "maskgit") -> object:
        loop = SAMPLERS.build({"type": sampler, "steps": STEPS})
        return loop(guidance.bind(denoiser, cond), x_1, Rng.per_sample(range(BATCH)), mask_id=VOCAB, grid=GRID)

    off, full, interval = Guidance(), Guidance(3.0), Guidance(3.0, interval=(0.25, 0.75))
    compare(
        "logits where masked / everywhere",
        lambda: decode(network, off),
        lambda: decode(everywhere, off),
        options.repeats,
    )
    compare(
        "Halton order / confidence order",
        lambda: decode(network, off, "halton"),
        lambda: decode(network, off),
        options.repeats,
    )
    compare(
        "guidance in an interval / everywhere",
        lambda: decode(network, interval),
        lambda: decode(network, full),
        options.repeats,
    )

    def draws() -> None:
        rng = Rng.per_sample(range(BATCH))
        for _ in range(STEPS):
            rng.uniform(x_1.shape)
            rng.gumbel(x_1.shape)

    compare("random draws / whole loop with guidance", draws, lambda: decode(network, full), options.repeats)


if __name__ == "__main__":
    main()
