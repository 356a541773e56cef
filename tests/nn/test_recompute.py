"""Gradient checkpointing changes nothing but what is kept."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import traits_of
from maskgen.models import MODELS
from maskgen.models.trunks import SWITCHES
from maskgen.nn.checkpointing import blocks_of, recompute
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.schema import RecipeError
from maskgen.tokenizers import TOKENIZERS
from tests import tiny

SIZES = {"width": 32, "depth": 2, "heads": 4}
DERIVED: dict[str, Any] = {
    "vocab_size": 5, "token_width": 4, "grid": (4, 4), "n_classes": 3, "image_shape": (1, 16, 16), "caption_width": 6
}  # fmt: skip
FOREIGN = ("classifier", "vit", "huggingface")
"""Classifiers, whose recipes refuse it, and networks of transformers, which have a test beside theirs."""
KEYS: dict[str, Any] = {
    "diffmae": {"decoder": {"type": "cross_self", "depth": 2}},
    "uvit": {"depth": 3, "caption_length": 3},
    "mar": {"head": {"type": "diffusion", "width": 32, "depth": 1}},
    "microdit": {"masking": {"type": "deferred", "width": 64, "depth": 1}, "multiple_of": 32},
    "amused": {"hidden": 64, "channels": 32, "channel_heads": 4, "n_residual": 1, "caption_length": 2},
}
NETWORKS = {
    **{name: {"type": name, **SIZES, **KEYS.get(name, {})} for name in MODELS.names() if name not in FOREIGN},
    **{f"dit {name}": {"type": "dit", **SIZES, "depth": 6, "masking": name} for name in SWITCHES.names()},
    "dropout": {"type": "mdlm", **SIZES, "dropout": 0.3},
    "registers": {"type": "maskgit", **SIZES, "norm": "rms", "head": "linear", "registers": 2, "patch": 2},
    "two conditions": {"type": "maskgit", **SIZES, "has_time": True, "dropout": 0.1},
}
every_network = pytest.mark.parametrize("spec", NETWORKS.values(), ids=NETWORKS.keys())


def started(spec: dict[str, Any]) -> nn.Module:
    has_vectors = "token_width" in inspect.signature(MODELS.get(spec["type"])).parameters
    return MODELS.build(spec, **DERIVED | ({"vocab_size": 0} if has_vectors else {}))


def built(spec: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = started(spec)
    for parameter in network.parameters():
        if float(parameter.detach().abs().max()) == 0:
            nn.init.normal_(parameter, std=0.2)
    return network.train()


def passed(network: nn.Module) -> Tensor:
    """Some number that depends on everything a network answers."""
    rng, keep = Rng.stream("pass"), TokenSubset(torch.tensor([[0, 3, 5, 6], [1, 2, 9, 15]]), 16)
    takes = inspect.signature(network.forward).parameters
    is_continuous = "token_width" in inspect.signature(type(network).__init__).parameters
    x_t = rng.normal((2, 16, 4)) if is_continuous else (rng.uniform((2, 16)) * 6).long()
    seen = x_t.where(keep.is_kept()[..., None], torch.nan) if is_continuous else None
    cond = Condition(torch.tensor([0, 2]), rng.normal((2, 3, 6)), visible=seen)
    if not {"denoising", "masked_denoising"} & set(traits_of(network).objectives) and seen is not None:
        x_t = seen  # [MASK] is NaN
    drops = getattr(getattr(network, "masking", None), "drops", False) and "subset" in takes
    torch.manual_seed(1)  # dropout
    answer = network(x_t, torch.tensor([0.3, 0.7]), cond, **({"subset": keep} if drops else {}))
    parts = [value for value in vars(answer).values() if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.stack([part.square().mean() for part in parts]).sum()


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@every_network
def test_loss_and_gradients_are_the_same_to_the_bit(spec: dict[str, Any]) -> None:
    plain, again = built(spec), built(spec)
    assert recompute(again) == len(list(blocks_of(plain))) >= 2
    losses = [passed(network) for network in (plain, again)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert list(gradients(plain)) == list(gradients(again))  # no name has changed
    for name, gradient in gradients(plain).items():
        other = gradients(again)[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or other is None or torch.equal(gradient, other), name


@every_network
def test_less_is_kept_for_the_backward_pass(spec: dict[str, Any]) -> None:
    plain, again = built(spec), built(spec)
    recompute(again)
    assert kept(again) < 0.7 * kept(plain)


def kept(network: nn.Module) -> int:
    """Bytes that a forward pass keeps, parameters left out."""
    owned = {parameter.data_ptr() for parameter in network.parameters()}
    found = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in owned:
            found[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        passed(network)
    return sum(found.values())


def tokenizers() -> Iterator[nn.Module]:
    for again in (False, True):
        torch.manual_seed(0)
        spec = {"type": "fsq", "levels": [3, 3], "width": 8, "fine_width": 8, "depth": 1}
        network = TOKENIZERS.build(spec, image_shape=(1, 8, 8))
        assert isinstance(network, nn.Module)
        assert not again or recompute(network)
        yield network


def test_a_tokenizer_that_learns_has_blocks_too() -> None:
    images, found = Rng.stream("images").uniform((2, 1, 8, 8)).float(), []
    for network in tokenizers():
        network(images).images.square().mean().backward()
        found.append(gradients(network))
    plain, again = found
    assert all(torch.equal(a, again[name]) for name, a in plain.items() if a is not None)  # type: ignore[arg-type]


def test_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        recompute(nn.Linear(2, 2))
    tree = {"data": "digits", "model": "classifier", "objective": "classification"}
    with pytest.raises(RecipeError, match="running statistics twice a batch"):
        parse_recipe(tree | {"train": {"gradient_checkpointing": True}})
    assert parse_recipe(tiny.tree(train={"gradient_checkpointing": True})).train.gradient_checkpointing
