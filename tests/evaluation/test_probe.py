"""A linear probe and nearest neighbours: what they must find, what they cannot, and that nothing else decides."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.evaluation.probes.classifiers import (
    Accuracy,
    Labelled,
    fit,
    linear_probe,
    nearest_neighbours,
    share_of_labels,
    standardised,
)


def blobs(n: int, gap: float, key: str) -> Labelled:
    """n points of three classes in six dimensions, centres `gap` apart on different axes, deviation 1."""
    labels = torch.arange(n) % 3
    points = Rng.stream(key).normal((n, 6))
    points[torch.arange(n), labels] += gap
    return Labelled(100 * points + 7, labels)  # a scale and a place that must not matter


@pytest.mark.learned
def test_classes_a_plane_separates_are_found_without_error() -> None:
    found = linear_probe(blobs(300, 20.0, "train"), blobs(150, 20.0, "test"))
    assert found.accuracy == Accuracy(1.0, 150)
    assert found.accuracy.standard_error == 0


@pytest.mark.learned
def test_of_shuffled_labels_nothing_is_learnt() -> None:
    train, test = blobs(600, 20.0, "train"), blobs(600, 20.0, "test")
    order = Rng.stream("shuffle").permutation(1, 600)[0]
    for found in (
        linear_probe(Labelled(train.features, train.labels[order]), test).accuracy,
        nearest_neighbours(Labelled(train.features, train.labels[order]), test),
    ):
        assert abs(found.value - 1 / 3) < 0.2


def test_a_probe_is_blind_to_the_scale_and_the_place_of_features() -> None:
    train, test = blobs(200, 1.5, "train"), blobs(200, 1.5, "test")
    scale, shift = torch.tensor([0.1, 3.0, 20.0, 1.0, 5.0, 0.4]), torch.arange(6.0)
    moved = [Labelled(one.features * scale + shift, one.labels) for one in (train, test)]
    assert abs(linear_probe(*moved).accuracy.value - linear_probe(train, test).accuracy.value) <= 1 / 200


def test_the_fit_is_the_minimum_of_the_penalised_loss() -> None:
    train = blobs(200, 1.5, "train")
    (x,) = standardised(train.features, [])
    weights, has_converged = fit(x, train.labels, torch.zeros(3, 7), 1e-2)
    assert has_converged
    weights.requires_grad_()
    logits = x @ weights[:, :-1].T + weights[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, train.labels) + 0.005 * weights[:, :-1].square().sum()
    (grad,) = torch.autograd.grad(loss, weights)
    assert grad.abs().max() < 1e-3


def test_a_stronger_penalty_gives_smaller_weights_and_a_warm_start_the_same() -> None:
    train = blobs(200, 1.5, "train")
    (x,) = standardised(train.features, [])
    weak, strong = (fit(x, train.labels, torch.zeros(3, 7), strength)[0] for strength in (1e-3, 1e-1))
    assert strong[:, :-1].norm() < 0.7 * weak[:, :-1].norm()
    warm, _ = fit(x, train.labels, strong, 1e-3)
    torch.testing.assert_close(warm[:, :-1], weak[:, :-1], atol=0.02, rtol=0.02)


def test_standardised_features_have_mean_0_and_deviation_1_and_a_constant_one_is_0() -> None:
    train = torch.cat([blobs(50, 2.0, "train").features, torch.full((50, 1), 3.0)], 1)
    x, other = standardised(train, [train + 1])
    torch.testing.assert_close(x[:, :-1].mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :-1].std(0, correction=0), torch.ones(6), atol=1e-4, rtol=0)
    assert bool((x[:, -1] == 0).all())
    assert bool((other > x).all())


def test_neighbours_are_those_of_brute_force_whatever_the_chunk() -> None:
    train, test = blobs(90, 1.0, "train"), blobs(40, 1.0, "test")
    right = 0
    for x, label in zip(test.features, test.labels, strict=True):
        cosines = torch.nn.functional.cosine_similarity(x[None], train.features)
        votes = torch.zeros(3, dtype=torch.float64)
        for row in cosines.argsort(descending=True)[:5]:
            votes[train.labels[row]] += (cosines[row].double() / 0.5).exp()
        right += int(votes.argmax() == label)
    for chunk in (1, 7, 40):
        assert nearest_neighbours(train, test, 5, 0.5, chunk) == Accuracy(right / 40, 40)
    assert 0.4 < right / 40 < 1


def test_one_neighbour_of_its_own_images_is_itself() -> None:
    train = blobs(60, 0.0, "train")
    assert nearest_neighbours(train, train, k=1).value == 1


def test_a_share_of_labels_is_of_every_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2])
    rows = share_of_labels(labels, 0.1)
    assert labels[rows].bincount().tolist() == [4, 2, 1]
    assert torch.equal(rows, share_of_labels(labels, 0.1))
    assert torch.equal(share_of_labels(labels, 1.0), torch.arange(61))
    with pytest.raises(ValueError, match=r"share of labels must be in \(0, 1\], got 0"):
        share_of_labels(labels, 0.0)


def test_the_error_is_binomial() -> None:
    assert Accuracy(0.5, 100).standard_error == pytest.approx(0.05)
    with pytest.raises(ValueError, match="N labels and at least one"):
        Labelled(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


def test_one_row_is_not_probed() -> None:
    with pytest.raises(ValueError, match="needs at least 2 training rows"):
        linear_probe(blobs(1, 20.0, "train"), blobs(5, 20.0, "test"))
