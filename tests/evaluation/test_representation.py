"""Features on disk, and fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.base import TensorSplit
from maskgen.data.image.sets import ArraySet
from maskgen.evaluation.probes.finetune import Tuning, finetuned, layer_rates, rate
from maskgen.evaluation.probes.representation import PIXELS, Encoder, features_of

IMAGES = (255 * Rng.stream("images").uniform((10, 1, 4, 4))).to(torch.uint8)


class Counting:
    """Mean brightness, and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.mean((2, 3))


def test_what_was_seen_before_does_not_run_the_network(tmp_path: Path) -> None:
    network = Counting()
    encoder = Encoder("brightness", {"weights": "a"}, network)
    first = features_of(ArraySet(IMAGES), encoder, batch_size=4, cache_dir=tmp_path)
    assert network.calls == 3
    assert torch.equal(features_of(ArraySet(IMAGES), encoder, cache_dir=tmp_path), first)
    assert network.calls == 3
    features_of(ArraySet(IMAGES.flip(0)), encoder, cache_dir=tmp_path)  # other images
    features_of(ArraySet(IMAGES), replace(encoder, identity={"weights": "b"}), cache_dir=tmp_path)  # another network
    assert network.calls == 5


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    network = Counting()
    encoder = Encoder("brightness", {"weights": "a"}, network)
    first = features_of(ArraySet(IMAGES), encoder, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        assert torch.equal(features_of(ArraySet(IMAGES), encoder, cache_dir=tmp_path), first)
    assert network.calls == 4
    assert file.read_bytes() == whole


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    found = [features_of(ArraySet(IMAGES), PIXELS, batch_size=n, cache_dir=tmp_path / str(n)) for n in (1, 3, 10)]
    assert torch.equal(found[0], IMAGES.flatten(1).float() / 255)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = Encoder("logarithms", {}, lambda images: (images.flatten(1) - images.flatten(1)[3]).log())
    with pytest.raises(UserError, match=r"logarithms of images\[0\] is NaN or infinite"):
        features_of(ArraySet(IMAGES), broken, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rates_fall_from_layer_to_layer_as_published() -> None:
    names = ["embedding.weight", "positions", *(f"blocks.{i}.mlp.expand.weight" for i in range(12)), "head.norm.weight"]
    rates = layer_rates(names, 0.65)
    assert rates["positions"] == rates["embedding.weight"] == pytest.approx(0.003697, rel=1e-3)  # 0.65^13
    assert rates["blocks.0.mlp.expand.weight"] == pytest.approx(0.005688, rel=1e-3)
    assert rates["blocks.11.mlp.expand.weight"] == pytest.approx(0.65)
    assert rates["head.norm.weight"] == 1
    assert layer_rates(["modulations.1.bias", "trunk.blocks.1.x.bias"], 0.5) == dict.fromkeys(
        ["modulations.1.bias", "trunk.blocks.1.x.bias"], 0.5
    )


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    assert rate(0.0) < 0.03
    assert rate(0.05) > 0.99
    assert rate(1.0) == pytest.approx(0)
    assert list(Tuning(epochs=2, batch_size=4).shares(9)) == [0, 0.25, 0.5, 0.75]
    ticks = iter(range(100))
    assert list(Tuning(minutes=0.05).shares(9, clock=lambda: float(next(ticks)))) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        Tuning(epochs=0)
    for impossible in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(ValueError, match="minutes and lr must be above 0 and finite"):
            Tuning(minutes=impossible)


def halves(n: int) -> TensorSplit:
    """Images of noise whose left or right half is brighter."""
    labels = torch.arange(n) % 2
    images = 60 * Rng.stream("halves", n).uniform((n, 1, 4, 4))
    for label, columns in enumerate((slice(0, 2), slice(2, 4))):
        images[labels == label, :, :, columns] += 120
    return TensorSplit(images.to(torch.uint8), labels)


@pytest.mark.learned
def test_fine_tuning_learns_what_frozen_features_hide_and_puts_the_weights_back() -> None:
    network = nn.Linear(16, 2)
    nn.init.zeros_(network.weight)  # features that tell nothing
    before = network.weight.clone()
    network.requires_grad_(False)
    encoder = Encoder("one layer", {}, lambda images: network(images.flatten(1)), module=network)
    found = finetuned(encoder, halves(60), halves(40), 2, Tuning(epochs=20, batch_size=10, lr=0.03))
    assert found.n == 40
    assert found.value == 1
    assert torch.equal(network.weight, before)
    assert not network.weight.requires_grad
    again = finetuned(encoder, halves(60), halves(40), 2, Tuning(epochs=20, batch_size=10, lr=0.03))
    assert again == found
    with pytest.raises(ValueError, match="raw pixels have nothing to fine-tune"):
        finetuned(PIXELS, halves(60), halves(40), 2)


def test_a_short_fine_tuning_is_scored_with_statistics_that_have_arrived() -> None:
    network = nn.Linear(16, 2)
    network.weight.data = Rng.stream("far").normal((2, 16))
    nn.init.constant_(network.bias, 300.0)  # a running average would still be on its way there
    encoder = Encoder("far from zero", {}, lambda images: network(images.flatten(1)), module=network)
    tuning = Tuning(epochs=1, batch_size=20, lr=0.01)  # three steps
    assert finetuned(encoder, halves(60), halves(40), 2, tuning).value > 0.9


def test_a_fine_tuning_that_diverges_has_no_score() -> None:
    network = nn.Linear(16, 2)
    before = network.weight.clone()
    encoder = Encoder("one layer", {}, lambda images: 1e4 * network(images.flatten(1)), module=network)
    for epochs in (1, 20):  # in its last step, or before
        with pytest.raises(UserError, match=r"fine-tuning diverged: .* NaN or infinite; choose an --lr below 1e\+38"):
            finetuned(encoder, halves(60), halves(40), 2, Tuning(epochs=epochs, batch_size=60, lr=1e38))
    assert torch.equal(network.weight, before)


def test_one_image_is_not_fine_tuned_on() -> None:
    network = nn.Linear(16, 2)
    encoder = Encoder("one layer", {}, lambda images: network(images.flatten(1)), module=network)
    with pytest.raises(ValueError, match="needs at least 2 training images, got 1"):
        finetuned(encoder, halves(1), halves(40), 2)
