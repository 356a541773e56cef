"""aMUSEd is the network of diffusers, with our conditions."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.predictions import Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.models.amused import Amused
from tests.cases import each

V, L = 20, 16
KEYS = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "channels": 16, "channel_heads": 2, "n_residual": 1}


def build(is_halved: bool = False, **keys: object) -> Amused:
    torch.manual_seed(0)
    spec = {"type": "amused", **KEYS, "caption_length": 3, "table_rows": 24, "is_halved": is_halved, **keys}
    network = MODELS.build(spec, vocab_size=V, grid=(4, 4), image_shape=(3, 32, 64), caption_width=8)
    assert isinstance(network, Amused)
    return network.eval()


def given() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    x_t = torch.arange(2 * L).reshape(2, L) % (V + 1)
    return x_t, torch.tensor([0.3, 0.8]), Condition(torch.zeros(2).long(), Rng.stream("captions").normal((2, 4, 8)))


@each("is_halved", [False, True])
def test_it_predicts_what_the_network_of_diffusers_does(is_halved: bool) -> None:
    network, (x_t, t, cond) = build(is_halved), given()
    assert cond.captions is not None
    ids = torch.where(x_t == V, 23, x_t).view(2, 4, 4)  # [MASK] is the last row of the published table
    micro = torch.tensor([[64.0, 32.0, 0.0, 0.0, 6.0]]).expand(2, -1)  # width before height
    theirs = network.network(ids, cond.captions[:, 1:], cond.captions[:, 0], micro).flatten(2).mT
    logits = network(x_t, t, cond).logits
    assert torch.equal(logits, theirs)
    where = x_t == V
    assert torch.equal(network(x_t, t, cond, where=where).logits, logits[where])


def test_size_crop_and_aesthetic_score_are_conditions() -> None:
    x_t, t, cond = given()
    answers = [build(**keys)(x_t, t, cond).logits for keys in ({}, {"crop": [8, 0]}, {"aesthetic": 9.0})]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_no_caption_is_the_stored_one_of_the_empty_text() -> None:
    network, (x_t, t, cond) = build(), given()
    network.null_caption.value.normal_()
    empty = Condition(cond.labels, network.null_caption.value.expand(2, -1, -1))
    assert torch.equal(network(x_t, t).logits, network(x_t, t, empty).logits)
    assert torch.equal(network(x_t, t, cond.null()).logits, network(x_t, t, empty).logits)


def test_it_needs_captions_and_a_table_with_room_for_the_mask() -> None:
    with pytest.raises(SpecError, match="captions only"):
        MODELS.build("amused", vocab_size=V, grid=(4, 4), image_shape=(3, 64, 64), caption_width=0)
    with pytest.raises(SpecError, match="table_rows must be above 20"):
        build(table_rows=20)
