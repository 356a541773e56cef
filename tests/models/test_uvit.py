"""Laws of the U-ViT over discrete tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskgen.core.predictions import NULL, Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.models.uvit import UViT
from tests.cases import each

V, L = 7, 16
CAPTIONS = {"caption_width": 6, "caption_length": 3}


def build(**keys: Any) -> UViT:
    """A network whose every path is open and matters."""
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "width": 16, "depth": 3, "heads": 2}
    network = UViT(V, (4, 4), **(sizes | keys)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def given() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    x_t = torch.arange(3 * L).reshape(3, L) % (V + 1)
    return x_t, torch.tensor([0.1, 0.5, 0.9]), Condition(torch.arange(3), Rng.stream("captions").normal((3, 3, 6)))


@each("keys", [{}, CAPTIONS, {"n_classes": 0, "has_time": True}])
def test_every_parameter_learns_and_logits_are_those_asked_for(keys: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**keys), given()
    logits, where = network(x_t, t, cond).logits, x_t == V
    torch.testing.assert_close(network(x_t, t, cond, where=where).logits, logits[where])
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@each("keys", [{}, CAPTIONS])
def test_rows_do_not_influence_each_other(keys: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**keys), given()
    alone = network(x_t[1:2], t[1:2], cond.rows(torch.tensor([1]))).logits
    torch.testing.assert_close(network(x_t, t, cond).logits[1:2], alone)


def test_time_matters_only_where_it_is_embedded() -> None:
    x_t, t, cond = given()
    for has_time in (False, True):
        network = build(has_time=has_time)
        assert torch.equal(network(x_t, t, cond).logits, network(x_t, t / 2, cond).logits) != has_time


def test_no_class_and_no_caption_are_conditions_of_their_own() -> None:
    x_t, t, cond = given()
    of_class, of_caption = build(), build(**CAPTIONS)
    assert torch.equal(of_class(x_t, t).logits, of_class(x_t, t, Condition(torch.full((3,), NULL))).logits)
    assert not torch.allclose(of_class(x_t, t).logits, of_class(x_t, t, cond).logits)
    assert of_caption.null_caption is not None
    of_caption.null_caption.value.normal_()
    empty = Condition(cond.labels, of_caption.null_caption.value.expand(3, -1, -1))
    for null in (None, cond.null(), empty):  # the embedding of the empty text stands for no caption
        assert torch.equal(of_caption(x_t, t, null).logits, of_caption(x_t, t, empty).logits)


def test_the_first_half_reaches_the_second_past_the_middle() -> None:
    network, (x_t, t, cond) = build(), given()
    before = network(x_t, t, cond).logits
    with torch.no_grad():
        network.skips[0].weight[:, 16:] = 0  # what the mirror passes on
    assert not torch.allclose(network(x_t, t, cond).logits, before)


def test_what_is_not_possible_is_refused() -> None:
    for keys, message in (({"depth": 4}, "depth odd"), ({"width": 12}, "multiple of 8"), ({"patch": 3}, "divide")):
        with pytest.raises(SpecError, match=message):
            MODELS.build({"type": "uvit", "width": 16, "depth": 3, "heads": 2} | keys, vocab_size=V, grid=(4, 4))
    network, (x_t, t, cond) = build(**CAPTIONS), given()
    with pytest.raises(ValueError, match="keep_ratio 1"):
        network(x_t, t, cond, subset=TokenSubset.draw(3, L, 0.5, Rng.stream(0)))
    with pytest.raises(ValueError, match=r"captions must be \(3, 6\)"):
        network(x_t, t, Condition(cond.labels, torch.ones(3, 2, 6)))
