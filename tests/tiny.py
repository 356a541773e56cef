"""The smallest recipes that are whole, and checkpoints of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from maskgen.checkpoint import MODEL, write_checkpoint
from maskgen.recipe import Recipe, parse_recipe

SHAPE = (1, 8, 8)
CLASSES = list("0123456789")
GENERATOR: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "pixels", "levels": 5},
    "model": {"type": "maskgit", "width": 8, "depth": 1, "heads": 2},
    "objective": "masked_tokens",
}
TOKENIZER: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "fsq", "levels": [3, 3], "width": 8, "fine_width": 4, "depth": 1},
    "objective": "reconstruction",
}
INFO = {"step": 7, "classes": CLASSES, "image_shape": list(SHAPE)}


def tree(base: dict[str, Any] = GENERATOR, **changes: Any) -> dict[str, Any]:
    """The tree of a recipe with top-level keys replaced."""
    return copy.deepcopy(base) | changes


def tokenizer_checkpoint(path: Path, **changes: Any) -> nn.Module:
    """Write a checkpoint of an untrained tokenizer; the tokenizer."""
    recipe = parse_recipe(tree(TOKENIZER, **changes))
    network = recipe.build_tokenizer(SHAPE)
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, INFO)
    return network


def generator_checkpoint(path: Path, **changes: Any) -> tuple[Recipe, nn.Module]:
    """Write a checkpoint of an untrained generator over pixels."""
    recipe = parse_recipe(tree(**changes))
    tokenizer = recipe.build_tokenizer(SHAPE)
    network = recipe.build_model(
        vocab_size=tokenizer.vocab_size, grid=tokenizer.grid, n_classes=len(CLASSES), image_shape=SHAPE
    )
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, INFO)
    return recipe, network
