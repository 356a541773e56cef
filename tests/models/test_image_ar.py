"""Autoregression over image tokens: causal, conditional, and exact with its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance

V, GRID = 6, (3, 3)


def network(n_classes: int = 3, **keys: Any) -> Any:
    torch.manual_seed(0)
    made = MODELS.build(
        {"type": "image_ar", "width": 16, "depth": 2, "heads": 2, **keys}, vocab_size=V, grid=GRID, n_classes=n_classes
    )
    for parameter in made.parameters():
        if not bool(parameter.detach().any()):
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def test_a_prediction_depends_on_earlier_tokens_and_on_the_class() -> None:
    model, x = network(), torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(0))
    cond = Condition(torch.tensor([0, 2]))
    before = model(x, torch.zeros(2), cond).logits
    other = x.clone()
    other[:, 4] = (other[:, 4] + 1) % V
    after = model(other, torch.zeros(2), cond).logits
    changed = (after - before).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 5 + [True] * 4
    assert not torch.allclose(model(x, torch.zeros(2), Condition(torch.tensor([1, 2]))).logits[0], before[0])
    nothing = Condition(torch.tensor([-1, -1]))
    torch.testing.assert_close(model(x, torch.zeros(2), nothing).logits, model(x, torch.zeros(2)).logits)


@pytest.mark.parametrize("mixer", ["attention", {"type": "token", "heads": 2}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_with_cached_keys_and_values_are_those_without(mixer: Any, scale: float) -> None:
    model, cond = network(mixer=mixer), Condition(torch.tensor([0, 2]))
    sampler = SAMPLERS.build({"type": "autoregressive"})
    x_1 = torch.full((2, 9), V)
    x_1[:, 4] = 1  # known
    samples = []
    with torch.no_grad():
        for denoiser in (model, model.cached()):
            denoise = Guidance(scale).bind(denoiser, cond, mask_id=V)
            samples.append(sampler(denoise, x_1, Rng.per_sample([0, 1]), mask_id=V, grid=GRID))
    assert torch.equal(*samples)
    assert samples[0][:, 4].tolist() == [1, 1]


def test_a_cache_of_other_classes_is_dropped() -> None:
    model, x = network(), torch.randint(0, V, (2, 9))
    cached, where = model.cached(), torch.zeros(2, 9, dtype=torch.bool)
    where[:, 5] = True
    for labels in ([0, 1], [0, 1], [2, 1]):
        cond = Condition(torch.tensor(labels))
        expected = model(x, torch.zeros(2), cond, where=where).logits
        torch.testing.assert_close(cached(x, torch.zeros(2), cond, where=where).logits, expected)


def test_training_drops_labels_and_an_unconditional_network_has_none() -> None:
    objective = OBJECTIVES.build({"type": "next_token", "label_dropout": 0.999}, layout=V)
    model, x = network().train(), torch.randint(0, V, (8, 9))
    batch = Batch(x, Condition(torch.zeros(8, dtype=torch.long)))
    loss = objective(model, batch, Rng.stream("drop")).value
    plain = objective(model, Batch(x), Rng.stream("drop")).value
    torch.testing.assert_close(loss, plain)
    assert network(0).traits.conditions == ()
    assert network(0)(x, torch.zeros(8)).logits.shape == (8, 9, V)


def test_guidance_needs_labels_dropped_in_training() -> None:
    with pytest.raises(RecipeError, match="null label that was trained"):
        load_recipe("image/fashion-ar", ["objective.label_dropout=0"])
