"""On real images the distance grows with everything that makes them worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from maskgen.core.rng import Rng
from maskgen.data.image.fashion import FASHION_FOLDER, FashionMnist
from maskgen.data.image.sets import ArraySet
from maskgen.evaluation.metrics.frechet import frechet_distance
from maskgen.evaluation.metrics.statistics import Statistics, collect
from maskgen.evaluation.protocols.features import Extractor
from maskgen.sample.judges import pick_extractor

pytestmark = pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="Fashion-MNIST is not installed")
N = 1024


@pytest.fixture(scope="module")
def judge() -> Extractor:
    return pick_extractor("fashion-classifier", None, torch.device("cpu"))


@pytest.fixture(scope="module")
def train() -> tuple[Tensor, Tensor]:
    return FashionMnist().split("train").__getitems__(range(N))


@pytest.fixture(scope="module")
def reference(judge: Extractor) -> Statistics:
    return collect(ArraySet(FashionMnist().split("test").__getitems__(range(2000))[0]), judge)


def blurred(level: int, images: Tensor, _: Tensor) -> Tensor:
    return gaussian_blur(images, [9, 9], [0.5 * level]) if level else images


def noisy(level: int, images: Tensor, _: Tensor) -> Tensor:
    noise = 12 * level * Rng.stream("noise").normal(tuple(images.shape))
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)


def without_classes(level: int, images: Tensor, labels: Tensor) -> Tensor:
    return images[labels >= 2 * level]


def duplicated(level: int, images: Tensor, _: Tensor) -> Tensor:
    n = N // 4**level
    return images[:n].repeat(N // n, 1, 1, 1)


@pytest.mark.parametrize("change", [blurred, noisy, without_classes, duplicated])
def test_the_distance_grows_with_what_makes_images_worse(
    judge: Extractor,
    train: tuple[Tensor, Tensor],
    reference: Statistics,
    change: Callable[[int, Tensor, Tensor], Tensor],
) -> None:
    found = [
        frechet_distance(collect(ArraySet(change(level, *train)), judge).moments, reference.moments)
        for level in range(5)
    ]
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]
