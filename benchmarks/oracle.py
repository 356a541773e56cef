"""Likelihoods and samplers against answers that are known.

    python benchmarks/oracle.py [--num 20000] [--steps 4 16 64 256] [--output oracle.json]

Toy: p(ab) = 1/2, p(ba) = 1/4, p(cc) = 1/4; bounds are integrated, not drawn, and must be the entropy. GenMD4: one token
of three, rates 1/2, 1 and 2, integrated. Tree: sequences of a grammar, num / 10 of them; their bounds are drawn.
Samplers: total variation of num samples to the toy's law; the error is what exact samples have in the mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.data.text.oracle import OracleTree
from maskgen.evaluation.metrics.bounds import count_bound, state_dependent_bound, time_bound
from maskgen.evaluation.metrics.likelihood import row_nll
from maskgen.objectives.state_dependent import reconstruction
from maskgen.samplers import SAMPLERS, with_exponents
from maskgen.samplers.guidance import Guidance
from maskgen.schedules import Cosine, CosineAlpha, CosineSquared, Linear, Polynomial, Schedule

STATES, P = torch.tensor([[0, 1], [1, 0], [2, 2]]), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
ENTROPY = -float((P * P.log()).sum())
Q, RATES = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.3, 0.2], [0.5, 1.0, 2.0]))
Row = tuple[str, float, float, float | None]  # name, value, what it should be, its error by chance


class Given(Rng):
    """Uniform draws as given, one after the other."""

    def __init__(self, *values: Tensor) -> None:
        super().__init__(0)
        self.values = list(values)

    def uniform(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        return self.values.pop(0).double().expand(tuple(shape)).to(device)


def toy(rates: Tensor = torch.ones(3)) -> Any:
    """The exact denoiser of `STATES` where token v is masked with chance t^rates[v]; equal rates cancel out."""

    def denoise(x_t: Tensor, t: Tensor, cond: object = None, *, where: Tensor) -> Categorical:  # noqa: ARG001
        is_masked = (x_t == 3)[:, None]  # (B, 1, L)
        chance = t.double().clamp(min=1e-30)[:, None, None] ** rates[STATES]  # (B, S, L)
        weight = (is_masked | (x_t[:, None] == STATES)).all(2) * P * torch.where(is_masked, chance, 1.0).prod(2)
        return Categorical(torch.einsum("bs,slv->blv", weight, F.one_hot(STATES).double()).log()[where], where)

    return denoise


def nodes(power: int) -> tuple[Tensor, Tensor]:
    """Points in (0, 1) and weights of a Gauss rule, dense towards 0."""
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))
    s = (x + 1) / 2
    return s**power, w / 2 * power * s ** (power - 1)


def toy_bound(schedule: Schedule, steps: int | None = None) -> float:
    """`time_bound` in expectation: all sequences, all sets of masks, all times."""
    t, weight = nodes(2) if steps is None else ((torch.arange(steps) + 1.0) / steps, torch.full((steps,), 1 / steps))
    level, ratio, total = (t if steps is None else t - 0.5 / steps), schedule.mask_ratio(t.double())[:, None], 0.0
    for (x_0, p), mask in itertools.product(zip(STATES, P, strict=True), itertools.product([True, False], repeat=2)):
        is_masked = torch.tensor(mask)
        rng = Given(1 - level, torch.where(is_masked, 0.0, 1.0))
        nats = time_bound(toy(), x_0.expand(len(t), 2), schedule, rng, 1, steps, mask_id=3)[:, 0]
        chance = torch.where(is_masked, ratio, 1 - ratio).prod(1)
        total += float(p * (weight * chance * nats)[chance > 0].sum())
    return total


def toy_rows(steps: Sequence[int]) -> Iterator[Row]:
    for schedule in (Linear(), Cosine(), CosineAlpha(), CosineSquared(), Polynomial(2), Polynomial(0.5)):
        yield f"bound, {schedule}", toy_bound(schedule), ENTROPY, None
    halves = [Given(*[torch.tensor(0.5), torch.tensor(order)] * 2) for order in ([0.0, 0.5], [0.5, 0.0])]
    counted = [count_bound(toy(), STATES, rng, 2, mask_id=3).mean(1) @ P for rng in halves]
    yield "bound by counts", float(sum(counted)) / 2, ENTROPY, None
    for number in steps:
        yield f"bound of {number} steps", toy_bound(Linear(), number), ENTROPY * (1 + 1 / number), None


def tree_rows(n: int) -> Iterator[Row]:
    tree = OracleTree()
    x_0 = tree.sample(n, Rng.stream("sequences"))
    exact, found = -tree.log_prob(x_0), row_nll(tree, x_0, Rng.stream("masks"), 8, mask_id=tree.vocab_size)
    rest, variance = found.nats - exact, torch.zeros(()) if found.variance is None else found.variance
    yield "mean bound - (-log p) of a sequence", float(rest.mean()), 0.0, float(rest.std()) / math.sqrt(n)
    yield "root mean square of it", float(rest.square().mean().sqrt()), float(variance.mean().sqrt()), None


def sampler_rows(n: int, steps: Sequence[int]) -> Iterator[Row]:
    m = (n * P).floor()  # de Moivre: the mean absolute deviation of a binomial count
    log_term = torch.lgamma(torch.tensor(n + 1.0)) - torch.lgamma(m + 1) - torch.lgamma(n - m)
    floor = float(((log_term + (m + 1) * P.log() + (n - m) * (1 - P).log()).exp() / n).sum())
    specs: list[dict[str, Any]] = [{"type": "first_hitting"}, {"type": "autoregressive"}]
    names = ("ancestral", "genmd4", "remdm_cap", "remdm_rescale", "remdm_conf", "remdm_loop")
    for spec in specs + [{"type": name, "steps": number} for name in names for number in steps]:
        rates = RATES if spec["type"] == "genmd4" else torch.ones(3)
        sampler = with_exponents(SAMPLERS.build(spec), rates)
        x_1, rng = torch.full((n, 2), 3), Rng.stream("samples", *map(str, spec.values()))
        x_0 = sampler(Guidance().bind(toy(rates), None), x_1, rng, mask_id=3)
        share = (x_0[:, None] == STATES).all(2).double().mean(0)
        distance = float((share - P).abs().sum() + 1 - share.sum()) / 2
        yield ", steps ".join(map(str, spec.values())), distance, 0.0, floor


def genmd4_bound(w: Tensor, is_posterior: bool, t_min: float = 1e-12) -> float:
    """`state_dependent_bound` of one token, integrated; mu is its posterior or else Q."""
    (level, weight), found = nodes(8), 0.0
    t = t_min + (1 - t_min) * level

    def mu(x_t: Tensor, t: Tensor, cond: object = None, *, where: Tensor) -> Categorical:  # noqa: ARG001
        return Categorical(Q.log() + is_posterior * w * t.double().log()[:, None], where)

    for x, q in enumerate(Q.tolist()):
        rest, rng = float(reconstruction(w[x].view(1, 1), w, t_min)), Given(1 - level, torch.zeros(()))
        whole = state_dependent_bound(mu, w, torch.full((len(t), 1), x), rng, 1, t_min, mask_id=3)[:, 0]
        found += q * (rest + float(weight * t ** w[x] @ (whole - rest)))  # masked with chance t^w
    return found


def genmd4_rows() -> Iterator[Row]:
    """mu = Q costs sum_x Q_x / w_x sum_v w_v Q_v - 1 = 0.33 more; the slopes are those of that."""
    yield "bound, mu = posterior", genmd4_bound(RATES, True), -float(Q @ Q.log()), None
    yield "bound, mu = Q", genmd4_bound(RATES, False), 0.33 - float(Q @ Q.log()), None
    for v, (slope, step) in enumerate(zip((-1.2, 0.135, 0.2325), 1e-5 * torch.eye(3).double(), strict=True)):
        rise = genmd4_bound(RATES + step, False) - genmd4_bound(RATES - step, False)
        yield f"its slope in rate {v}", rise / 2e-5, slope, None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--num", type=int, default=20_000, help="samples of each sampler")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    print(f"{'':46}{'value':>12}{'exact':>12}{'difference':>13}{'error':>11}")
    parts = {"toy": toy_rows(options.steps), "tree": tree_rows(max(options.num // 10, 2)), "genmd4": genmd4_rows()}
    found: dict[str, list[Row]] = {}
    for part, rows in (parts | {"samplers": sampler_rows(options.num, options.steps)}).items():
        found[part] = list(rows)
        for name, value, exact, error in found[part]:
            last = "" if error is None else f"{error:11.6f}"
            print(f"{part + ': ' + name:46}{value:12.6f}{exact:12.6f}{value - exact:13.1e}{last}")
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
