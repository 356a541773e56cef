"""Laws of the mixture of experts with group-limited routing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from maskgen.core.rng import Rng
from maskgen.models.text_settings import TextSettings
from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.layers.routed import ExpertSettings, RoutedExperts
from tests.cases import each

D = 6
SMALL = ExpertSettings(n_experts=8, n_chosen=3, width=4, n_groups=4, n_chosen_groups=2, scale=2.0)


def build(settings: ExpertSettings = SMALL) -> RoutedExperts:
    torch.manual_seed(0)
    layer = RoutedExperts(D, settings)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def vectors(*shape: int) -> Tensor:
    return Rng.stream("vectors").normal((*shape, D)).float()


def test_the_output_is_the_weighted_sum_of_the_chosen_experts_and_the_shared_one() -> None:
    layer, x = build(), vectors(2, 5)
    chosen, weights = layer.route(x.flatten(0, 1))
    expected = torch.stack([
        sum(w * layer._expert(int(e), row) for e, w in zip(experts, ws, strict=True))
        for row, experts, ws in zip(x.flatten(0, 1), chosen, weights, strict=True)
    ])  # fmt: skip
    assert layer.shared is not None
    torch.testing.assert_close(layer(x), expected.view_as(x) + layer.shared(x))


def test_weights_sum_to_the_scale_and_come_from_few_groups() -> None:
    chosen, weights = build().route(vectors(50))
    torch.testing.assert_close(weights.sum(1), torch.full((50,), 2.0))
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    assert all(len({expert // 2 for expert in row}) <= 2 for row in chosen.tolist())


def test_the_bias_decides_which_experts_compute_a_token_but_not_what_they_weigh() -> None:
    layer, x = build(), vectors(20)
    before = dict(zip(layer.route(x)[0][0].tolist(), layer.route(x)[1][0].tolist(), strict=True))
    layer.score_bias += 5.0  # the same for all
    assert dict(zip(layer.route(x)[0][0].tolist(), layer.route(x)[1][0].tolist(), strict=True)) == before
    layer.score_bias[6:] += 10
    assert all({6, 7} <= set(row) for row in layer.route(x)[0].tolist())
    assert bool((layer.route(x)[1] <= 2).all())


def test_a_single_expert_is_a_gated_layer() -> None:
    one = ExpertSettings(n_experts=2, n_chosen=1, width=4, n_groups=1, n_chosen_groups=1, n_shared=0, scale=1.0)
    layer, plain, x = build(one), GatedMlp(D, 4), vectors(1, 5)
    layer.score_bias[0] = 9
    nn.init.zeros_(layer.gate.weight)  # each score is 1 / 2
    with torch.no_grad():
        plain.expand.weight.copy_(layer.expand[0])
        plain.contract.weight.copy_(layer.contract[0])
    torch.testing.assert_close(layer(x), plain(x) / 2)


def test_tokens_do_not_depend_on_each_other_and_all_weights_learn() -> None:
    layer, x = build(), vectors(3, 20)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    assert "score_bias" not in dict(layer.named_parameters())


@each(
    "keys, message",
    [
        ({"n_experts": 9}, "n_groups times at least 2"),
        ({"n_chosen_groups": 5}, "n_chosen_groups at most n_groups"),
        ({"n_chosen": 5}, "at most the 4 experts of the chosen groups, got 5"),
        ({"n_expert": 8}, "Extra inputs"),
    ],
)
def test_impossible_sizes_are_refused(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExpertSettings(**{**SMALL.model_dump(), **keys})


def test_experts_stand_after_the_dense_blocks_and_are_swiglu() -> None:
    settings = TextSettings(width=8, heads=2, mlp="swiglu", experts=SMALL)
    kinds = [type(settings.block.build_mlp(layer)) for layer in range(3)]
    assert kinds == [GatedMlp, RoutedExperts, RoutedExperts]
    with pytest.raises(ValueError, match="use mlp swiglu, got gelu"):
        TextSettings(width=8, heads=2, experts=SMALL)
