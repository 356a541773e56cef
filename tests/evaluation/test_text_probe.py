"""Retrieval of second halves and inversion of inputs, on laws and on a tiny checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.evaluation.probes.inversion import inverted
from maskgen.evaluation.probes.retrieval import Pairs, matching_loss, nearest_halves, retrieval_head
from maskgen.models import MODELS


def noise(*shape: int, name: str = "noise") -> Tensor:
    return Rng.stream(name).normal(shape)


def test_equal_halves_find_each_other_and_unrelated_ones_do_not() -> None:
    x = noise(200, 16)
    assert nearest_halves(Pairs(x, 3 * x)).value == 1
    assert nearest_halves(Pairs(x, noise(200, 16, name="other"))).value < 0.05
    with pytest.raises(ValueError, match="at least 2 passages"):
        Pairs(x[:1], x[:1])


def test_the_head_finds_what_only_some_channels_share_and_never_sees_the_test_passages() -> None:
    def pairs(name: str, n: int) -> Pairs:
        shared, first, second = noise(n, 8, name=name), noise(n, 24, name=name + "1"), noise(n, 24, name=name + "2")
        return Pairs(torch.cat([shared, first], 1), torch.cat([shared, second], 1))

    train, test = pairs("train", 400), pairs("test", 100)
    before, after = nearest_halves(test.standardised(train)), retrieval_head(train, test)
    assert after.value > before.value + 0.1
    scaled = Pairs(5 * train.first + 2, 5 * train.second + 2)
    moved = Pairs(5 * test.first + 2, 5 * test.second + 2)
    assert retrieval_head(scaled, moved).value == pytest.approx(after.value, abs=0.02)


def test_the_contrastive_loss_of_unrelated_halves_is_that_of_guessing() -> None:
    flat = Pairs(torch.ones(10, 4), torch.ones(10, 4))
    assert float(matching_loss(flat)) == pytest.approx(torch.tensor(10.0).log().item())


def test_inputs_are_recovered_from_features_that_keep_them_and_not_from_features_that_forget() -> None:
    table, ids = noise(12, 8), torch.randint(0, 12, (2, 6), generator=torch.Generator().manual_seed(0))
    weight = noise(8, 8, name="weight")
    found = inverted(lambda x: x @ weight, ids, table, Rng.stream("start"), steps=300)
    assert (found == ids).double().mean() > 0.9
    forgetful = inverted(lambda x: (x @ weight).mean(1, keepdim=True), ids, table, Rng.stream("start"), steps=50)
    assert (forgetful == ids).double().mean() < 0.5


@pytest.mark.parametrize("name", ["ar", "mdlm", "bd3", "image_ar"])
def test_features_of_embeddings_are_those_of_their_tokens(name: str) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = {"type": name, "width": 16, "depth": 1, "heads": 2}
    network: Any = MODELS.build(keys, vocab_size=5, grid=(2, 4), n_classes=0).eval()
    ids = torch.randint(0, 5, (2, 8))
    x = network.features(ids)
    assert x.shape == (2, 8, 16)
    torch.testing.assert_close(network.features_of(network.embedding(network.inputs(ids))), x)
    torch.testing.assert_close(network.hidden(network.inputs(ids), torch.zeros(2), network.pattern.mask(8)), x)
