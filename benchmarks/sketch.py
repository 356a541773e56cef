"""MaskSketch on Fashion-MNIST: how near the samples are to their sketch, and how good they are.

    python benchmarks/sketch.py [--num 250] [--steps 30] [--source edges|picture] [--output FILE] [--sheet FILE.png]

Sketches are edges of test images (or the images), one a sample with the image's class, all for the zoo's
`fashion-maskgit`. Edge distance: symmetric Chamfer distance in pixels between the edges of a sample and of the test
image, an edge being a gradient above half of the largest. Fréchet distance and class accuracy by the features of
`fashion-classifier`. Baseline: a share of the sketch's tokens masked at random and sampled as usual. What --output
holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import maskgen
from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.core.files import write_json
from maskgen.core.pixels import to_float
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.sheet import write_images
from maskgen.pipelines.sketch import Sketch, edges_of

STRUCTURES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
SHARES = (0.5, 0.75, 0.9, 0.95)
Draw = Callable[[ImagePipeline, Tensor, Tensor], Tensor]


def chamfer(a: Tensor, b: Tensor) -> float:
    """Symmetric Chamfer distance of two edge maps (1, H, W) uint8, in pixels."""
    one, other = (a[0] >= 128).numpy(), (b[0] >= 128).numpy()
    if not one.any() or not other.any():
        return float(max(a.shape[1:]))
    to_one, to_other = distance_transform_edt(~one), distance_transform_edt(~other)
    return float((to_other[one].mean() + to_one[other].mean()) / 2)


def sketched(structure: float, steps: int) -> Draw:
    def draw(pipeline: ImagePipeline, sketches: Tensor, labels: Tensor) -> Tensor:
        rows = [
            Sketch.of(one, (1, 28, 28), structure=structure, steps=steps).tokens(
                pipeline.generator, [row], labels[row : row + 1]
            )
            for row, one in enumerate(sketches)
        ]
        return pipeline.generator.decode(torch.cat(rows))

    return draw


def masked(share: float) -> Draw:
    def draw(pipeline: ImagePipeline, sketches: Tensor, labels: Tensor) -> Tensor:
        tokens = pipeline.tokenizer.encode(to_float(sketches))
        rank = Rng.per_sample(range(len(tokens))).uniform(tokens.shape).argsort(1).argsort(1)
        known = torch.where(rank < round(share * tokens.shape[1]), -1, tokens)
        return pipeline.generator.images(range(len(tokens)), labels, known)

    return draw


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=250)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--source", choices=("edges", "picture"), default="edges")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = maskgen.load_image("fashion-maskgit", device="cpu")
    classifier: Any = load_model(read_checkpoint("fashion-classifier"))[0]
    test = pipeline.checkpoint.recipe.build_data().split("test")
    images, labels = test.__getitems__([i * len(test) // options.num for i in range(options.num)])
    others = test.__getitems__(range(1, len(test), 5))[0]
    real = Moments.of(torch.cat([classifier.features(to_float(part)) for part in others.split(250)]))
    edges = torch.stack([edges_of(one) for one in images])
    sketches = edges if options.source == "edges" else images
    arms = {f"structure {one:g}": sketched(one, options.steps) for one in STRUCTURES}
    arms |= {f"tokens masked {one:.0%}": masked(one) for one in SHARES}
    found = json.loads(options.output.read_text()) if options.output and options.output.is_file() else {}
    rows = [images[:10], sketches[:10]]
    for name, draw in arms.items():
        key = f"{options.source} / {name} / {options.num} / {options.steps} steps"
        if key not in found or options.sheet:
            start = time.process_time()
            n = options.num if key not in found else 10
            made = draw(pipeline, sketches[:n], labels[:n])
            rows.append(made[:10])
            if key not in found:
                drawn = to_float(made)
                found[key] = {
                    "edge_distance": sum(map(chamfer, map(edges_of, made), edges)) / len(made),
                    "distance": frechet_distance(Moments.of(classifier.features(drawn)), real),
                    "class_accuracy": float((classifier(drawn).argmax(1) == labels).double().mean()),
                    "seconds": (time.process_time() - start) / len(made),
                }
                if options.output:
                    write_json(options.output, found)
        print(key, {name: round(value, 4) for name, value in found[key].items()}, flush=True)
    if options.sheet:
        write_images(options.sheet, torch.cat(rows), None, 10, (), 2)


if __name__ == "__main__":
    main()
