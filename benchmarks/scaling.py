"""Loss against CPU seconds of networks of several sizes, a fitted power law, and its prediction of the next size.

    python benchmarks/scaling.py --recipe image/fashion-mae --widths 48,72,96,120 --steps 300 --output DIR

Every width is trained for the same steps (an interrupted run goes on), the last one is not in the fit: its final
validation loss is predicted from its CPU seconds first, then measured. L(C) = E + A C^-a, by least squares in E and A
on a grid of a. The rules of the protocol: equal data and steps, one thread, raw validation loss of the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskgen.core.files import write_json

EXPONENTS = np.linspace(0.05, 3, 296)


class PowerLaw(NamedTuple):
    """L(C) = floor + scale C^-exponent."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, cost: float) -> float:
        return float(self.floor + self.scale * cost**-self.exponent)


def fit(costs: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law of least squares; the floor is not negative.

    Raises:
        ValueError: fewer than three points.
    """
    if len(costs) < 3:
        raise ValueError(f"a power law with a floor needs at least three sizes, got {len(costs)}")
    best: tuple[float, PowerLaw] | None = None
    for exponent in EXPONENTS:
        terms = np.stack([np.ones(len(costs)), np.asarray(costs, dtype=float) ** -exponent], 1)
        (floor, scale), *_ = np.linalg.lstsq(terms, np.asarray(losses, dtype=float), rcond=None)
        if floor < 0:
            floor = 0.0
            scale = float(terms[:, 1] @ np.asarray(losses) / (terms[:, 1] @ terms[:, 1]))
        error = float(np.square(terms @ [floor, scale] - losses).sum())
        if best is None or error < best[0]:
            best = error, PowerLaw(float(floor), float(scale), float(exponent))
    assert best is not None
    return best[1]


def trained(recipe: str, width: int, steps: int, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Validation loss, CPU seconds and parameters of a width after its training, which is resumed if it was cut off."""
    sizes = [f"model.width={width}", f"train.steps={steps}", f"train.checkpoint_every={steps}"]
    quiet = ["train.preview_every=0", "train.tensorboard=false"]
    command = [sys.executable, "-m", "maskgen", "train", recipe, *sizes, *quiet, *overrides]
    subprocess.run([*command, "--output", str(folder), "--resume", "auto"], check=True, stdout=subprocess.DEVNULL)
    cost = json.loads((folder / "cost.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = next(line["validation/loss"] for line in reversed(lines) if "validation/loss" in line)
    return {"width": width, "loss": loss, "cpu_seconds": cost["cpu_seconds"], "parameters": cost["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image/fashion-mae")
    parser.add_argument("--widths", default="48,64,96,128", help="the last one is predicted; multiples of 4 and heads")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    rows = [
        trained(options.recipe, width, options.steps, options.overrides, options.output / f"width-{width}")
        for width in widths
    ]
    law = fit([row["cpu_seconds"] for row in rows[:-1]], [row["loss"] for row in rows[:-1]])
    for row in rows:
        print(
            f"width {row['width']:4.0f}: {row['parameters']:9,.0f} parameters, {row['cpu_seconds']:6.1f} CPU s, ",
            end="",
        )
        print(f"loss {row['loss']:.4f}, fitted {law(row['cpu_seconds']):.4f}")
    last = rows[-1]
    predicted = law(last["cpu_seconds"])
    print(f"L(C) = {law.floor:.4f} + {law.scale:.4f} C^-{law.exponent:.2f}")
    print(f"width {last['width']:.0f}: predicted {predicted:.4f}, measured {last['loss']:.4f}")
    law_tree = {"floor": law.floor, "scale": law.scale, "exponent": law.exponent}
    write_json(options.output / "scaling.json", {"sizes": rows, "law": law_tree, "predicted": predicted})


if __name__ == "__main__":
    main()
