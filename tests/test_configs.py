"""Every shipped recipe is whole, and its network can be built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from maskgen.data.images import DATASETS
from maskgen.models import MODELS
from maskgen.recipe import Recipe, load_recipe, parse_recipe
from maskgen.shipped import recipe_names, recipe_summary, recipe_text

IMAGENET = (1000, (3, 256, 256))


def sizes(recipe: Recipe) -> tuple[int, tuple[int, int, int]]:
    """(classes, image shape), for a folder without looking at it."""
    name, arguments = DATASETS.check(recipe.data)
    if name == "folder":
        side = arguments["size"]
        return 1000, (arguments.get("channels", 3), side, side)
    source: Any = DATASETS.get(name)
    return len(source.classes), source.image_shape


def trained_by(name: str) -> Recipe:
    """The recipe that makes the tokenizer of another: itself, or the VQ of its data."""
    recipe = load_recipe(name)
    return recipe if recipe.tokenizer_source is None else load_recipe(name.split("/")[1].split("-")[0] + "-vq")


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_valid_short_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_summary(name) == recipe.summary != ""
    assert len(recipe_text(name).splitlines()) <= 40
    assert parse_recipe(yaml.safe_load(recipe.dump())) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_network_of_a_shipped_recipe_can_be_built(name: str) -> None:
    recipe = load_recipe(name)
    n_classes, shape = sizes(recipe)
    with torch.device("meta"):
        tokenizer = None if recipe.task == "classifier" else trained_by(name).build_tokenizer(shape)
        network = tokenizer if recipe.task == "tokenizer" else recipe.build_model(n_classes, shape, tokenizer)
        recipe.build_objective(0 if tokenizer is None else tokenizer.vocab_size)
    assert network is not None
    assert any(parameter.requires_grad for parameter in network.parameters())


def test_the_published_maskgit_has_exactly_its_parameters() -> None:
    name = "image/imagenet-maskgit"
    recipe = load_recipe(name)
    with torch.device("meta"):
        tokenizer = trained_by(name).build_tokenizer(IMAGENET[1])
        network = recipe.build_model(*IMAGENET, tokenizer)
    assert (tokenizer.vocab_size, tokenizer.grid) == (1024, (16, 16))
    assert sum(parameter.numel() for parameter in network.parameters()) == 172_457_193


def test_the_published_maskgit_at_512_pixels_differs_in_its_positions_alone() -> None:
    spec = load_recipe("image/imagenet-maskgit").model
    assert spec is not None
    with torch.device("meta"):
        small, large = (MODELS.build(spec, vocab_size=1024, grid=(s, s), n_classes=1000) for s in (16, 32))
    difference = sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())
    assert difference == (1024 - 256) * 768
