"""Laws of the optimizer's groups and of the learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskgen.models import MODELS
from maskgen.recipe import TrainSettings
from maskgen.tokenizers import TOKENIZERS
from maskgen.train.optim import build_optimizer, decayed, learning_rate

MASKGIT = {"type": "maskgit", "width": 8, "depth": 1, "heads": 2}


@pytest.mark.parametrize("changes", [{}, {"norm": "post", "condition": "token", "tied": False}, {"qk_norm": True}])
def test_norms_biases_embeddings_and_positions_do_not_decay(changes: dict[str, object]) -> None:
    network = MODELS.build(MASKGIT | changes, vocab_size=5, grid=(2, 2), n_classes=3)
    names = decayed(network)
    assert "blocks.0.attention.qkv.weight" in names
    assert "blocks.0.mlp.expand.weight" in names
    for name, parameter in network.named_parameters():
        is_plain = parameter.ndim == 1 or name in ("embedding.weight", "labels.weight", "positions")
        assert (name in names) is not is_plain, name


def test_kernels_decay_and_group_norms_do_not() -> None:
    spec = {"type": "fsq", "levels": [3], "width": 8, "fine_width": 4, "depth": 1}
    names = decayed(TOKENIZERS.build(spec, image_shape=(1, 8, 8)))
    assert "encoder.stem.weight" in names
    assert not any(name.endswith(("bias", "norm.weight")) for name in names)


def test_every_trainable_parameter_is_in_one_group() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    network[2].requires_grad_(False)
    optimizer = build_optimizer(network, TrainSettings(weight_decay=0.3, betas=(0.8, 0.9)))
    matrix, rest = optimizer.param_groups
    assert [p is network[0].weight for p in matrix["params"]] == [True]
    assert {id(p) for p in rest["params"]} == {id(p) for p in (network[0].bias, *network[1].parameters())}
    assert (matrix["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert matrix["betas"] == (0.8, 0.9)


def test_a_parameter_without_gradient_signal_shrinks_only_if_it_decays() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2))
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = build_optimizer(network, TrainSettings(lr=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ratios = [(p / b).mean().item() for p, b in zip(network.parameters(), before, strict=True)]
    assert ratios == pytest.approx([1 - 0.1 * 0.5, 1, 1])


def rates(**settings: object) -> list[float]:
    chosen = TrainSettings.model_validate({"steps": 10, "lr": 2.0, "warmup": 4, **settings})
    return [learning_rate(step, chosen) for step in range(chosen.steps + 1)]


def test_the_rate_rises_linearly_and_never_is_zero_at_first() -> None:
    assert rates(lr_schedule="constant") == pytest.approx([0.5, 1.0, 1.5, 2.0, 2, 2, 2, 2, 2, 2, 2])


def test_the_rate_falls_as_half_a_cosine_to_zero() -> None:
    wanted = [2 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert rates()[4:] == pytest.approx(wanted)
    assert rates()[-1] == pytest.approx(0)
    assert learning_rate(50, TrainSettings(steps=10, warmup=4)) == pytest.approx(0)


def test_without_warmup_the_first_step_is_a_full_one() -> None:
    assert rates(warmup=0)[0] == 2.0


def test_a_warmup_longer_than_the_run_is_a_rising_rate() -> None:
    longer = rates(warmup=100)
    assert all(math.isfinite(rate) and rate > 0 for rate in longer[:10])
    assert longer[:10] == sorted(longer[:10])
