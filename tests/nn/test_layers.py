"""Laws of feed-forward layers with gates and experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.layers.moe import ExpertChoice
from tests.cases import each

WIDTH = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def experts(n_experts: int = 4, capacity: float = 2.0) -> ExpertChoice:
    """Experts in float64, every weight of which matters."""
    layer = ExpertChoice(WIDTH, 6, n_experts, capacity).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed))
    return layer


def naive(layer: ExpertChoice, x: Tensor) -> Tensor:
    """Every expert on every token of one image (L, D), those not taken weighed by nothing."""
    weights, answer = layer.gate(x).softmax(-1), torch.zeros_like(x)
    for expert in range(layer.n_experts):
        best = weights[:, expert].argsort(descending=True)[: layer.n_tokens(len(x))]
        is_taken = torch.zeros(len(x), dtype=torch.bool).index_fill(0, best, True)
        all_tokens = F.gelu(x @ layer.expand[expert]) @ layer.contract[expert]
        answer = answer + (weights[:, expert] * is_taken)[:, None] * all_tokens
    return answer


def test_a_gated_layer_is_its_definition() -> None:
    layer, x = GatedMlp(WIDTH, 6).double(), noise(2, 5, WIDTH)
    w_1, w_2 = layer.expand.weight.chunk(2)
    torch.testing.assert_close(layer(x), (F.silu(x @ w_1.T) * (x @ w_2.T)) @ layer.contract.weight.T)


@each("n_experts, capacity", [(1, 1.0), (4, 0.5), (4, 1.7), (4, 4.0), (8, 2.0)])
def test_experts_by_index_are_every_expert_on_every_token(n_experts: int, capacity: float) -> None:
    layer, x = experts(n_experts, capacity), noise(3, 11, WIDTH)
    torch.testing.assert_close(layer(x), torch.stack([naive(layer, row) for row in x]))


def test_gradients_are_those_of_the_definition() -> None:
    layer, x = experts(), noise(3, 11, WIDTH).requires_grad_()
    inputs = [x, *layer.parameters()]
    by_index = torch.autograd.grad(layer(x).square().sum(), inputs)
    by_definition = torch.autograd.grad(torch.stack([naive(layer, row) for row in x]).square().sum(), inputs)
    for one, other in zip(by_index, by_definition, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_does_not_depend_on_the_others() -> None:
    layer, x = experts(), noise(4, 12, WIDTH)
    together = layer(x)
    for row in range(4):
        torch.testing.assert_close(together[[row]], layer(x[[row]]), rtol=1e-12, atol=1e-12)


def test_the_order_of_tokens_does_not_matter() -> None:
    layer, x, order = experts(), noise(2, 12, WIDTH), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


@each("length, n", [(64, 16), (256, 64), (10, 2), (3, 1), (1, 1)])
def test_an_expert_takes_its_share_of_tokens_and_at_least_one(length: int, n: int) -> None:
    assert ExpertChoice(WIDTH, 2, n_experts=8, capacity=2.0).n_tokens(length) == n


@each("length", [1, 2, 9])
def test_every_expert_learns_whatever_the_length(length: int) -> None:
    layer = experts()
    layer(noise(1, length, WIDTH)).square().sum().backward()
    for parameter in (layer.expand, layer.contract):
        assert parameter.grad is not None
        assert bool(parameter.grad.flatten(1).any(1).all())
    if length > 1:
        assert layer.gate.weight.grad is not None
        assert bool(layer.gate.weight.grad.any())


def test_one_expert_that_takes_all_is_a_plain_layer() -> None:
    layer, x = experts(1, 1.0), noise(2, 5, WIDTH)
    torch.testing.assert_close(layer(x), F.gelu(x @ layer.expand[0]) @ layer.contract[0])


def test_mixed_precision_is_near_single() -> None:
    layer, x = experts().float(), noise(2, 8, WIDTH).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    high = layer(x).detach()
    torch.testing.assert_close(low.float(), high, atol=0.1 * float(high.std()), rtol=0.1)


@each("n_experts, capacity", [(0, 1.0), (4, 0.0), (4, 4.5)])
def test_a_share_that_experts_cannot_take_is_refused(n_experts: int, capacity: float) -> None:
    with pytest.raises(ValueError, match=f"capacity must be in .* got {capacity}"):
        ExpertChoice(WIDTH, 6, n_experts, capacity)
