"""Solvers of a trained diffusion head at equal evaluations of its network.

    python benchmarks/head_solvers.py [--steps 1500] [--num 20000] [--output head_solvers.json]

A head of MAR and eMIGM (a token of one number; condition: one of two classes) is trained on a mixture of three normal
distributions per class. Each solver starts from the same noise. `error`, of the solver alone: mean distance to the
samples of 200 evaluations of the same head. `truth`, of head and solver: Wasserstein-1 to samples of the mixture;
`floor` is that of two sets of such samples.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.models.token_head import Diffusion, TokenHead
from maskgen.processes import Gaussian
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.samplers import FieldSampler
from maskgen.samplers.masked.loop import DPM_HEAD
from maskgen.schedules import Betas

PROCESS = Gaussian(Betas("cosine"), target="eps", steps=1000)
MEAN = torch.tensor([[-1.5, 0.2, 1.3], [-0.8, 0.0, 1.6]])
STD = torch.tensor([[0.2, 0.1, 0.3], [0.3, 0.1, 0.15]])
WEIGHT = torch.tensor([0.3, 0.3, 0.4])
EVALUATIONS = (8, 14)
LONG = FieldSampler("dpm_single", 200, "logsnr", order=3, sigma_min=0.01)


def solvers(n: int) -> dict[str, FieldSampler]:
    """Solvers of n evaluations: ours, the published settings of eMIGM, and the default before."""
    return {
        "singlestep, log-SNR, noise from 80 (default)": FieldSampler(
            "dpm_single", n, "logsnr", order=3, sigma_min=DPM_HEAD.sigma_min
        ),
        "singlestep, log-SNR, noise from 164 (published)": FieldSampler(
            "dpm_single", n, "logsnr", order=3, sigma_max=math.exp(5.1)
        ),
        "multistep, Karras": FieldSampler("dpm", n, "karras"),
    }


def drawn(n: int, seed: str) -> tuple[Tensor, Tensor]:
    """n samples (n, 1) of the mixture, and their classes (n,)."""
    rng = Rng.stream(seed)
    label = (rng.uniform((n,)) * 2).long()
    part = torch.searchsorted(WEIGHT.cumsum(0), rng.uniform((n,)).float()).clamp(max=2)
    return (MEAN[label, part] + STD[label, part] * rng.normal((n,)).float())[:, None], label


def trained(steps: int) -> TokenHead:
    """A head whose network predicts the noise."""
    torch.manual_seed(0)
    head = Diffusion(width=64, depth=3, process=PROCESS, has_variance=False).build(2, 0, 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        x_0, label = drawn(512, f"batch {step}")
        rng = Rng.stream("noise", step)
        t, noise = (rng.uniform((512,)) * 1000).floor().add(1).div(1000), rng.normal((512, 1)).float()
        a, b = (value.float()[:, None] for value in PROCESS.amplitudes(t))
        field = predicted(head, label).field()((a * x_0 + b * noise)[:, None], t.float())
        loss = (field.value[:, 0] - noise).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return head.eval().requires_grad_(False)


def predicted(head: TokenHead, label: Tensor) -> DiffusionHead:
    """The prediction for tokens of classes (N,)."""
    found = head(torch.nn.functional.one_hot(label, 2).float(), None)
    assert isinstance(found, DiffusionHead)
    return found


def sampled(head: TokenHead, label: Tensor, solver: FieldSampler) -> Tensor:
    """(N,) samples, from noise that is the same for every solver."""
    z = predicted(head, label)
    rows = DiffusionHead(z.z[None], z.net, z.process, 1, None, has_variance=False, solver=solver)
    return rows.sample(Rng.stream("start")).flatten()


def distance(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 of two samples of one size."""
    return (x.sort().values - y.sort().values).abs().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the head")
    parser.add_argument("--num", type=int, default=20_000, help="samples")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    start = time.process_time()
    head = trained(options.steps)
    print(f"trained for {options.steps} steps in {time.process_time() - start:.0f} CPU seconds")
    truth, label = drawn(options.num, "truth")
    again = drawn(options.num, "again")[0]
    long = sampled(head, label, LONG)
    floor, trained_error = distance(truth[:, 0], again[:, 0]), distance(long, truth[:, 0])
    rows: list[dict[str, float | str]] = []
    print(f"floor {floor:.4f}; the head with {LONG.nfe} evaluations is {trained_error:.4f} from the truth")
    print(f"{'solver':48}{'evaluations':>12}{'error':>9}{'truth':>9}")
    for n in EVALUATIONS:
        for name, solver in solvers(n).items():
            found = sampled(head, label, solver)
            row = {"solver": name, "evaluations": solver.nfe}
            row |= {"error": (found - long).abs().mean().item(), "truth": distance(found, truth[:, 0])}
            rows.append(row)
            print(f"{name:48}{row['evaluations']:12}{row['error']:9.4f}{row['truth']:9.4f}", flush=True)
    if options.output:
        found = {"floor": floor, "head": trained_error, "steps": options.steps, "num": options.num, "rows": rows}
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
