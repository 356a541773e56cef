"""Laws of the network of a diffusion head."""

from __future__ import annotations

import pytest
import torch

from maskgen.nn.token_mlp import TokenMlp
from tests.cases import each


def inputs(n: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.arange(n) * 100.0, torch.randn(n, 6, generator=generator)


def awake() -> TokenMlp:
    """One whose gates are open."""
    torch.manual_seed(0)
    net = TokenMlp(4, 8, 6, width=16, depth=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_the_answer_is_zero_at_the_start() -> None:
    assert TokenMlp(4, 8, 6, width=16, depth=2)(*inputs()).abs().max() == 0


def test_a_token_is_answered_for_alone() -> None:
    net, (x, t, z) = awake(), inputs()
    assert torch.allclose(net(x, t, z)[2:3], net(x[2:3], t[2:3], z[2:3]), atol=1e-5)


@each("index", [0, 1, 2])
def test_token_time_and_what_stands_around_it_all_matter(index: int) -> None:
    net, given = awake(), list(inputs())
    before = net(*given)
    given[index] = given[index] + 1
    assert not torch.allclose(net(*given), before, atol=1e-3)


@each("sizes", [{"width": 0, "depth": 1}, {"width": 8, "depth": 0}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="width and depth"):
        TokenMlp(4, 8, 6, **sizes)
