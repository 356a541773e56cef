"""Laws that every registered token mixer obeys, and what its declared traits promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.nn.mixers.attention import AttentionSettings
from maskgen.nn.mixers.base import LayerCache, TokenMixer
from maskgen.nn.mixers.registry import MIXERS, Mixer, MixerPlace
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import RecipeError
from tests.cases import each

WIDTH, LENGTH = 16, 9
KEYS: dict[str, dict[str, Any]] = {name: {"first": {"type": "token"}} for name in ("serial", "alternating", "parallel")}
SETTINGS = AttentionSettings(WIDTH, 4)
SPECS = [{"type": name, **KEYS.get(name, {})} for name in MIXERS.names()]
each_mixer = each("spec", SPECS)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(mixer: Mixer, index: int = 0) -> TokenMixer:
    torch.manual_seed(0)
    return mixer.build(SETTINGS, MixerPlace(LENGTH, index, 2)).double().eval()


@each_mixer
def test_a_mixer_maps_rows_to_rows_and_lets_all_tokens_influence_each_other(spec: dict[str, Any]) -> None:
    mixer, x = layer(MIXERS.build(spec)), noise(2, LENGTH, WIDTH).requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    for place in (0, LENGTH - 1):
        (gradient,) = torch.autograd.grad(y[0, place].square().sum(), x, retain_graph=True)
        assert bool((gradient[0].abs().amax(-1) > 0).all())
        assert not bool(gradient[1].any()), "rows influence each other"


@each_mixer
def test_a_mixer_is_causal_where_it_says_so(spec: dict[str, Any]) -> None:
    mixer = MIXERS.build(spec)
    one, x = layer(mixer), noise(2, LENGTH, WIDTH)
    if not mixer.traits.takes_causal:
        with pytest.raises(ValueError, match="mask"):
            one(x, mask="causal")
        return
    later = x.clone()
    later[:, 5:] += 1
    torch.testing.assert_close(one(x, mask="causal")[:, :5], one(later, mask="causal")[:, :5])
    if mixer.traits.has_cache:
        cache = LayerCache()
        parts = [one(x[:, i : i + 1], cache=cache) for i in range(LENGTH)]
        torch.testing.assert_close(torch.cat(parts, 1), one(x, mask="causal"))


@each_mixer
def test_a_mixer_keeps_to_masks_lengths_and_weights_as_declared(spec: dict[str, Any]) -> None:
    mixer = MIXERS.build(spec)
    one, x, traits = layer(mixer), noise(1, LENGTH, WIDTH), mixer.traits
    documents = torch.arange(LENGTH)[:, None] // 4 == torch.arange(LENGTH) // 4
    if traits.takes_masks:
        other = x.clone()
        other[:, 4:] += 1
        torch.testing.assert_close(one(x, mask=documents)[:, :4], one(other, mask=documents)[:, :4])
    else:
        with pytest.raises(ValueError, match="mask"):
            one(x, mask=documents)
    assert traits.has_fixed_length == (one.fixed_length is not None)
    if traits.has_fixed_length:
        with pytest.raises(ValueError, match="got 4"):
            one(x[:, :4])
    else:
        assert one(x[:, :4]).shape == (1, 4, WIDTH)
    if traits.has_weights:
        assert layer(mixer, 1).weights(x).shape == (1, LENGTH, LENGTH)


@each_mixer
def test_networks_are_built_with_every_mixer_and_run(spec: dict[str, Any]) -> None:
    sizes = {"width": 16, "depth": 2, "heads": 4, "mixer": spec}
    ids = torch.randint(0, 5, (2, LENGTH))
    for name in ("maskgit", "mdlm", "discrete_dit"):
        derived: dict[str, Any] = {"vocab_size": 5, "grid": (LENGTH,) if name == "mdlm" else (3, 3), "n_classes": 2}
        own = {"patch": 1} if name == "discrete_dit" else {}
        network = MODELS.build({"type": name, **sizes, **own}, **derived)
        traits: Any = network.traits
        assert network(ids, torch.zeros(2)).logits.shape == (2, LENGTH, 5)
        assert traits.has_fixed_grid or not MIXERS.build(spec).traits.has_fixed_length


@each_mixer
@each("masking", ["naive", "deferred", "maskdit"])
def test_diffusion_transformers_have_every_mixer_and_drop_the_tokens_that_it_can_do_without(
    spec: dict[str, Any], masking: str
) -> None:
    keys = {"type": "dit", "width": 16, "depth": 2, "heads": 4, "masking": masking, "mixer": spec}
    network = MODELS.build(keys, token_width=3, grid=(3, 3), n_classes=2)
    x, t, mixer = noise(2, LENGTH, 3).float(), torch.full((2,), 0.5), MIXERS.build(spec)
    traits: Any = network.traits
    assert network(x, t).value.shape == (2, LENGTH, 3)
    assert traits.drops_tokens is mixer.traits.drops_tokens
    assert traits.has_fixed_grid is mixer.traits.has_fixed_length
    if traits.drops_tokens:
        kept = TokenSubset(torch.tensor([[0, 2, 5], [1, 2, 8]]), LENGTH)
        n_out = LENGTH if masking == "maskdit" else 3
        assert network(x, t, subset=kept).value.shape == (2, n_out, 3)


def test_serial_and_alternating_mixers_choose_by_block_and_parallel_ones_by_channels() -> None:
    token = {"type": "token"}
    kinds = {
        name: [type(MIXERS.build({"type": name, "first": token}).build(SETTINGS, MixerPlace(9, i, 4))).__name__[0]
               for i in range(4)]
        for name in ("serial", "alternating")
    }  # fmt: skip
    assert kinds == {"serial": ["T", "T", "S", "S"], "alternating": ["T", "S", "T", "S"]}
    both = layer(MIXERS.build({"type": "parallel", "first": token}))
    x = noise(1, LENGTH, WIDTH)
    parts: Any = both.layers
    torch.testing.assert_close(both(x), torch.cat([parts[0](x[..., :8]), parts[1](x[..., 8:])], -1))


def test_attention_is_the_default_and_leaves_the_weights_of_a_network_as_they_were() -> None:
    networks = []
    for keys in ({}, {"mixer": "attention"}):
        torch.manual_seed(0)
        networks.append(MODELS.build({"type": "maskgit", "depth": 1, **keys}, vocab_size=5, grid=(2, 2), n_classes=2))
    first, second = (network.state_dict() for network in networks)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "blocks.0.attention.qkv.weight" in first


@each(
    "changes, message",
    [
        ({"base": "text/kjv-bd3", "model.mixer": "token"}, "mixer for any attention pattern"),
        ({"base": "image/fashion-maskgit", "model.mixer": "token", "train.keep_ratio": 0.5}, "drops no tokens"),
        ({"base": "image/fashion-maskgit", "model.mixer": "tokens"}, "token"),
        ({"base": "image/fashion-mdt", "model.mixer": "bi_mamba"}, "masking mdt adds a bias to attention scores"),
        ({"base": "image/fashion-deferred", "model.mixer": "token", "train.keep_ratio": 0.5}, "drops no tokens"),
        ({"base": "image/fashion-maskgit", "model.mixer": {"type": "token", "size": 3}}, "unknown key"),
    ],
)
def test_recipes_that_a_mixer_cannot_do_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(changes["base"], {key: value for key, value in changes.items() if key != "base"})
