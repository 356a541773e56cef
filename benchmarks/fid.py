"""What scoring costs: the Fréchet distance at 2048 features beside clean-fid's, and 10,000 Fashion-MNIST images.

    python benchmarks/fid.py [--images 10000] [--width 2048] [--repeats 3] [--output FILE.json]

Features are Gaussian with a spectrum that falls like i^-1.4, so that all packages are given the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from maskgen.core.files import atomic
from maskgen.core.rng import Rng
from maskgen.data.image.opening import open_images
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.evaluation.metrics.statistics import collect
from maskgen.sample.judges import DEFAULT, pick_extractor


def features(key: str, n: int, width: int, gain: float) -> Tensor:
    """(n, width) float64."""
    rng = Rng.stream(key)
    basis = torch.linalg.qr(Rng.stream("basis").normal((width, width)).double()).Q
    return (rng.normal((n, width)).double() * gain * torch.arange(1, width + 1) ** -0.7) @ basis + 0.01 * gain


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least seconds of several runs after one to warm up, and what came of it."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def distances(n: int, width: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds and value of each package's distance of the same moments."""
    from cleanfid.fid import frechet_distance as theirs
    from torchmetrics.image.fid import _compute_fid

    a, b = (Moments.of(features(key, n, width, gain)) for key, gain in (("a", 1.0), ("b", 1.1)))
    moments = (a.mean, a.cov, b.mean, b.cov)
    arrays = [x.numpy() for x in moments]
    ways: dict[str, Callable[[], Any]] = {
        "maskgen": lambda: frechet_distance(a, b),
        "clean-fid": lambda: theirs(*arrays),
        "torchmetrics": lambda: _compute_fid(*moments),
    }
    found = {}
    for name, run in ways.items():
        try:
            seconds, value = best(run, repeats)
        except TypeError as error:  # clean-fid with scipy 1.18
            print(f"{name} does not run here: {error}")
            continue
        found[name] = {"seconds": seconds, "value": float(value)}
    return found


def scoring() -> dict[str, float]:
    """Seconds to read, look at and compare the 10,000 test images of Fashion-MNIST, nothing cached."""
    began = time.perf_counter()
    extractor = pick_extractor(DEFAULT, None, torch.device("cpu"))
    test = collect(open_images("fashion_mnist:test"), extractor)
    value = frechet_distance(test.moments, collect(open_images("fashion_mnist:test"), extractor).moments)
    return {"images": 2.0 * (test.n or 0), "seconds": time.perf_counter() - began, "value": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as cache:
        os.environ["MASKGEN_CACHE"] = cache
        found: dict[str, Any] = {"distances": distances(options.images, options.width, options.repeats)}
        ours = found["distances"]["maskgen"]
        for name, row in found["distances"].items():
            factor = row["seconds"] / ours["seconds"]
            print(f"{name:14}{row['seconds']:9.3f} s{factor:7.1f} x  {row['value']:.12g}")
        found["fashion"] = scoring()
    print(f"{found['fashion']['images']:.0f} Fashion-MNIST images: {found['fashion']['seconds']:.1f} s")
    if options.output:
        with atomic(options.output) as file:
            file.write(json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
