"""Laws of declared traits: they agree with what the network offers, before and after it is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from maskgen.core.traits import DEFAULT, NetworkTraits, declared_traits, is_in_training, network_of, traits_of
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES

DERIVED = {"vocab_size": 0, "token_width": 4, "grid": (4, 4), "n_classes": 3, "image_shape": (1, 16, 16)}


REQUIRED: dict[str, dict[str, Any]] = {
    "huggingface": {"config": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 5}}
}
"""Keys without a default."""


def build(name: str, **keys: Any) -> nn.Module:
    keys = REQUIRED.get(name, {}) | keys
    tokens = declared_traits(MODELS.get(name), MODELS.check({"type": name, **keys})[1]).tokens
    derived = DERIVED | ({"vocab_size": 5, "token_width": 0} if tokens[:1] == ("discrete",) else {})
    with torch.device("meta"):
        return MODELS.build({"type": name, **keys}, **derived)


@pytest.mark.parametrize("name", MODELS.names())
def test_a_built_network_has_the_traits_that_were_declared_and_offers_what_they_promise(name: str) -> None:
    declared, network = declared_traits(MODELS.get(name)), build(name)
    traits = traits_of(network)
    of_sizes = {"conditions": declared.conditions, "groups": declared.groups}  # of classes and grid, which no key has
    assert replace(traits, **of_sizes) == declared  # type: ignore[arg-type]
    assert set(traits.conditions) <= set(declared.conditions)
    assert set(traits.objectives) <= set(OBJECTIVES.names())
    assert traits.objectives
    offered = {
        "attention_scores": traits.has_attention_scores,
        "features": traits.has_features,
        "cached": traits.has_cache,
        "exponents": traits.has_exponents,
    }
    for method, is_declared in offered.items():
        assert not is_declared or hasattr(network, method), method
    assert traits.has_fixed_grid or hasattr(network, "set_grid") or "image" not in traits.streams


KEYS: dict[str, dict[str, Any]] = {
    "has_null_label": {"type": "maskgit", "condition": "token", "has_null_label": False},
    "has_fixed_grid": {"type": "maskgit", "positions": "rotary"},
    "has_difficulty": {"type": "mae", "has_difficulty": True},
    "drops_tokens": {"type": "dit", "masking": "naive"},
    "has_exponents": {"type": "mdlm", "has_exponents": True},
    "block_length": {"type": "bd3", "block_length": 4},
    "has_projection": {"type": "mage", "projection": 8},
    "tokens": {"type": "mar", "head": "categorical"},
}


def test_keys_of_a_recipe_change_traits_before_and_after_building_alike() -> None:
    for trait, spec in KEYS.items():
        name, arguments = MODELS.check(spec)
        declared = declared_traits(MODELS.get(name), arguments)
        built = traits_of(build(name, **{key: value for key, value in spec.items() if key != "type"}))
        assert vars(declared)[trait] == vars(built)[trait] != vars(declared_traits(MODELS.get(name)))[trait], trait


def test_traits_are_those_of_the_network_inside_of_what_wraps_it() -> None:
    network = build("ar")
    compiled = torch.compile(network)
    assert network_of(compiled) is network
    assert traits_of(compiled).is_autoregressive
    assert network_of(network) is network


def test_what_declares_nothing_has_the_default_traits() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head, self.traits = build("ar"), nn.Identity(), "a name of its own"

    assert traits_of(lambda x: x) is traits_of(Holder()) is declared_traits(len) is DEFAULT
    assert isinstance(network_of(Holder()), Holder)
    assert NetworkTraits(conditions=("caption",)).takes_captions
    assert not NetworkTraits(conditions=()).takes_classes


def test_a_function_counts_as_in_training_and_a_module_has_its_mode() -> None:
    assert is_in_training(len)
    assert not is_in_training(nn.Identity().eval())
