"""Laws of the DiT over discrete tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskgen.core.predictions import NULL, Condition
from maskgen.core.subset import TokenSubset
from maskgen.models.discrete_dit import DiscreteDiT
from tests.cases import each

V, L = 7, 16


def build(**keys: Any) -> DiscreteDiT:
    """A network whose every path is open and matters."""
    torch.manual_seed(0)
    network = DiscreteDiT(V, (4, 4), **({"n_classes": 3, "width": 16, "depth": 2, "heads": 2} | keys)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def given() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    return torch.arange(3 * L).reshape(3, L) % (V + 1), torch.tensor([0.1, 0.5, 0.9]), Condition(torch.arange(3))


@each("keys", [{}, {"n_classes": 0, "has_time": True}, {"patch": 1}])
def test_every_parameter_learns_and_logits_are_those_asked_for(keys: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**keys), given()
    logits, where = network(x_t, t, cond).logits, x_t == V
    assert logits.shape == (3, L, V)
    torch.testing.assert_close(network(x_t, t, cond, where=where).logits, logits[where])
    torch.testing.assert_close(network(x_t[1:2], t[1:2], Condition(torch.tensor([1]))).logits, logits[1:2])
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_row_of_the_head_is_of_a_place_in_the_patch_and_a_token() -> None:
    network, (x_t, t, cond) = build(), given()
    bias = torch.arange(4 * V).float()
    with torch.no_grad():
        network.trunk.head.out.weight.zero_()
        network.trunk.head.out.bias.copy_(bias)
    logits = network(x_t, t, cond).logits[0].view(4, 4, V)
    for row in range(4):
        for column in range(4):
            place = row % 2 * 2 + column % 2
            assert torch.equal(logits[row, column], bias[place * V : (place + 1) * V])


def test_time_matters_only_where_it_is_embedded_and_no_class_is_one_more() -> None:
    x_t, t, cond = given()
    for has_time in (False, True):
        network = build(has_time=has_time)
        assert torch.equal(network(x_t, t, cond).logits, network(x_t, t / 2, cond).logits) != has_time
    null = Condition(torch.full((3,), NULL))
    assert torch.equal(network(x_t, t).logits, network(x_t, t, null).logits)
    assert not torch.allclose(network(x_t, t).logits, network(x_t, t, cond).logits)


def test_sizes_and_dropped_tokens_that_do_not_fit_are_refused() -> None:
    x_t, t, _ = given()
    with pytest.raises(ValueError, match="divide the grid 4 x 4, got 3"):
        build(patch=3)
    with pytest.raises(ValueError, match="drops none; use"):
        build()(x_t, t, subset=TokenSubset(torch.arange(2).expand(3, 2), L))
