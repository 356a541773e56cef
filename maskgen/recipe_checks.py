"""What no part of a recipe can know alone, about the phases of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskgen.budget import plan
from maskgen.data.images import DATASETS
from maskgen.models import MODELS
from maskgen.recipe_tree import RecipeError

if TYPE_CHECKING:
    from maskgen.recipe import Recipe


def check_phases(recipe: Recipe) -> None:
    """Batches that micro-batches fill, and resolutions that data, tokenizer and network can change to."""
    for stretch in plan(recipe.train):
        if stretch.batch_size % stretch.accumulate:
            raise RecipeError(
                f"train.batch_size must be a multiple of train.accumulate, got {stretch.batch_size} and "
                f"{stretch.accumulate}"
            )
    resolutions = [phase.resolution for phase in recipe.train.phases if phase.resolution is not None]
    if not resolutions:
        return
    key, data = f"train.phases: resolution {resolutions[0]}", DATASETS.check(recipe.data, "data")[0]
    if recipe.task != "generator" or "size" not in DATASETS.arguments(data):
        raise RecipeError(f"{key} needs a generator of image data with a `size`, {data} has none; leave it out")
    if recipe.tokenizer_source is not None:
        raise RecipeError(f"{key}: tokenizer {recipe.tokenizer_source} is for images of one size; leave it out")
    model = MODELS.check(recipe.model or "")[0]
    if not hasattr(MODELS.get(model), "set_grid"):
        raise RecipeError(f"{key}: model {model} is for one grid of tokens; leave it out")
