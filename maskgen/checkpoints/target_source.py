"""The checkpoint that targets of a training are computed with: `objective.target.checkpoint`."""

from __future__ import annotations

import inspect

from maskgen.checkpoints.checkpoint import CheckpointError, load_model, read_checkpoint
from maskgen.core.traits import network_of, traits_of
from maskgen.objectives.targets import FrozenNetwork, FrozenTokenizer
from maskgen.objectives.targets.source import Source
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer


def load_target_source(recipe: Recipe) -> Source | None:
    """The frozen network or tokenizer that the recipe's objective needs; None for one that needs none.

    Raises:
        CheckpointError: it cannot be loaded, or is neither a tokenizer nor a generator of images with features.
    """
    if recipe.task != "generator":
        return None
    path = recipe.build_objective(recipe.stand_in).checkpoint
    if not path:
        return None
    checkpoint = read_checkpoint(path)
    if checkpoint.recipe.kind != "image" or checkpoint.recipe.task == "classifier":
        raise CheckpointError(f"objective.target.checkpoint: {path} is no image tokenizer or generator")
    if checkpoint.image_shape != recipe.image_shape():
        raise CheckpointError(
            f"objective.target.checkpoint: {path} is for images {checkpoint.image_shape}, the data have "
            f"{recipe.image_shape()}"
        )
    network, tokenizer = load_model(checkpoint)
    if tokenizer is None:
        assert isinstance(network, ImageTokenizer)
        return FrozenTokenizer(network)
    has_features = traits_of(network).has_features
    if not has_features or "t" in inspect.signature(network_of(network).features).parameters:
        raise CheckpointError(f"objective.target.checkpoint: {path} offers no features of unmasked tokens alone")
    return FrozenNetwork(network, tokenizer, checkpoint.image_shape)
