"""The smallest recipes that are whole, and checkpoints of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskgen.checkpoints.checkpoint import MODEL, write_checkpoint
from maskgen.checkpoints.checkpoint import TOKENIZER as TOKENIZER_FILE
from maskgen.core.rng import Rng
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.schema import Recipe

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
FIELD: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "patches", "size": 2},
    "process": {"type": "gaussian", "schedule": "rectified", "target": "flow", "scale": "straight"},
    "model": {"type": "dit", "width": 16, "depth": 1, "heads": 2},
    "objective": "denoising",
    "sampler": {"type": "dpm", "steps": 3},
}
"""A generator of continuous tokens."""

VECTORS: dict[str, Any] = {
    "data": "digits",
    "tokenizer": {"type": "patches", "size": 2},
    "model": {
        "type": "mar", "width": 16, "depth": 1, "heads": 2, "n_buffer": 2, "dropout": 0.0,
        "head": {"type": "diffusion", "width": 8, "depth": 1},
    },
    "objective": "token_diffusion",
    "sampler": {"type": "emigm", "steps": 4, "head": {"type": "dpm", "steps": 3, "clip": 1.0}},
}  # fmt: skip
"""A generator of continuous tokens that are masked."""

INFO = {"step": 7, "classes": CLASSES, "image_shape": list(SHAPE)}

POEM = "".join(f"line {i} of a poem, naïve and short\n" for i in range(40))
LENGTH = 12
_SMALL = {"width": 16, "depth": 1, "heads": 2}
_BERNOULLI = {"type": "absorbing", "count": "bernoulli"}
KINDS: dict[str, dict[str, Any]] = {
    "mdlm": {
        "process": _BERNOULLI,
        "model": {"type": "mdlm", **_SMALL},
        "objective": {"type": "masked_tokens", "weight": "elbo"},
        "sampler": {"type": "ancestral", "steps": 4},
    },
    "genmd4": {
        "process": "state_dependent",
        "model": {"type": "mdlm", "has_exponents": True, **_SMALL},
        "objective": "state_dependent",
        "sampler": {"type": "genmd4", "steps": 4},
    },
    "bd3": {
        "process": _BERNOULLI,
        "model": {"type": "bd3", "block_length": 4, **_SMALL},
        "objective": "block_tokens",
        "sampler": {"type": "ancestral", "steps": 6},
    },
    "ar": {"model": {"type": "ar", **_SMALL}, "objective": "next_token", "sampler": "autoregressive"},
}
"""Recipes of text generators, a kind of network each, without their data."""


def tree(base: dict[str, Any] = GENERATOR, **changes: Any) -> dict[str, Any]:
    """The tree of a recipe with top-level keys replaced."""
    return copy.deepcopy(base) | changes


def tokenizer_checkpoint(path: Path, **changes: Any) -> nn.Module:
    """Write a checkpoint of an untrained tokenizer; the tokenizer."""
    recipe = parse_recipe(tree(TOKENIZER, **changes))
    network = recipe.build_tokenizer(SHAPE)
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, INFO)
    return network


def generator_checkpoint(path: Path, base: dict[str, Any] = GENERATOR, **changes: Any) -> tuple[Recipe, nn.Module]:
    """Write a checkpoint of an untrained generator over pixels, or patches of them."""
    recipe = parse_recipe(tree(base, **changes))
    tokenizer = recipe.build_tokenizer(SHAPE)
    network = recipe.build_model(n_classes=len(CLASSES), image_shape=SHAPE, **tokenizer.sizes())
    if not recipe.has_discrete_tokens:  # it would answer zero
        rng = Rng.stream("weights")
        for parameter in network.parameters():
            parameter.data += 0.1 * rng.normal(parameter.shape)
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, INFO)
    return recipe, network


def text_tree(file: Path, kind: str = "mdlm", **changes: Any) -> dict[str, Any]:
    """The tree of a recipe over the characters of a text file, the poem if there is none yet."""
    if not file.exists():
        file.write_bytes(POEM.encode())
    data = {"type": "text_file", "path": str(file), "length": LENGTH}
    return tree(KINDS[kind], data=data, tokenizer="characters") | changes


def text_checkpoint(
    path: Path, kind: str = "mdlm", is_uniform: bool = False, **changes: Any
) -> tuple[Recipe, nn.Module]:
    """Write a checkpoint of a text generator with random weights, or one as it is before training: it knows nothing."""
    recipe = parse_recipe(text_tree(path.parent / "poem.txt", kind, **changes))
    source = recipe.build_text()
    tokenizer = recipe.build_text_tokenizer(source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = recipe.build_model(vocab_size=tokenizer.vocab_size, grid=(source.length,))
    if not is_uniform:
        rng = Rng.stream("weights")
        for parameter in network.parameters():
            parameter.data += 0.5 * rng.normal(parameter.shape)
    home = path.parent / f"{path.name}-home"
    home.mkdir()
    tokenizer.save(home / TOKENIZER_FILE)
    info = {"step": 7, "classes": [], "length": source.length}
    write_checkpoint(path, recipe, {MODEL: network.state_dict()}, info, home)
    return recipe, network
