"""Linear probes without training: raw pixels, histograms of gradients, and the encoder of a recipe at its start.

    python benchmarks/untrained.py --recipe image/fashion-mae --num 20000 --cells 3

What a target has to beat, on the images of `maskgen probe --num 20000 --cells 3`. Histograms are MaskFeat's target,
with cells of a patch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.pixels import to_float
from maskgen.core.rng import fold
from maskgen.data.image.sets import SplitSet
from maskgen.evaluation.probes.classifiers import Labelled, linear_probe, nearest_neighbours, share_of_labels
from maskgen.objectives.targets.hog import oriented_gradients
from maskgen.recipes.build import DataFacts, build_system
from maskgen.recipes.load import load_recipe
from maskgen.sample.labelled import labelled_split
from maskgen.tokenizers import ImageTokenizer

BINS, SHARE, BATCH = 9, 0.01, 250


def pictures(images: SplitSet) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1], and their labels."""
    assert images.labels is not None
    return to_float(torch.cat([batch for _, batch in images.batches(BATCH, range(len(images)))])), images.labels


def encoder(name: str, shape: tuple[int, int, int], cells: int) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Side of a patch, and features of a recipe's network as it starts, in cells."""
    recipe = load_recipe(name)
    tokenizer = recipe.build_tokenizer(shape)
    torch.manual_seed(fold(recipe.seed, "weights"))
    network: Any = build_system(recipe, DataFacts(0, shape), tokenizer).network.eval()
    assert isinstance(tokenizer, ImageTokenizer)

    def features(images: Tensor) -> Tensor:
        found: Tensor = network.features(tokenizer.encode(images))
        return F.adaptive_avg_pool2d(found.mT.unflatten(2, tokenizer.grid), cells).flatten(1)

    return shape[1] // tokenizer.grid[0], features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image/fashion-mae")
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=3)
    options = parser.parse_args()
    source = load_recipe(options.recipe).build_data()
    train, test = (
        pictures(labelled_split(source, name, most)) for name, most in (("train", options.num), ("test", None))
    )
    side, start = encoder(options.recipe, source.image_shape, options.cells)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "raw pixels": lambda images: images.flatten(1),
        "histograms of gradients": lambda images: oriented_gradients(images, side, BINS).flatten(1),
        "untrained encoder": start,
    }
    few = share_of_labels(train[1], SHARE)
    print(f"{'features':24} {'width':>6} {'linear':>7} {'k-NN':>7} {'linear, 1 % of labels':>22}")
    for name, features in kinds.items():
        with torch.no_grad():
            first, second = (
                Labelled(torch.cat([features(batch) for batch in images.split(BATCH)]), labels)
                for images, labels in (train, test)
            )
        scores = [linear_probe(first, second).accuracy.value, nearest_neighbours(first, second).value]
        scores.append(linear_probe(first.rows(few), second).accuracy.value)
        print(f"{name:24} {first.features.shape[1]:>6} {scores[0]:7.4f} {scores[1]:7.4f} {scores[2]:22.4f}", flush=True)


if __name__ == "__main__":
    main()
