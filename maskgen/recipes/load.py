"""From the text of a recipe to a validated `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maskgen.core.registry import Registry, Spec, SpecError, explain
from maskgen.data.base import DATASETS
from maskgen.data.image.captions import CaptionSettings
from maskgen.data.image.views import Views
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES
from maskgen.processes import PROCESSES
from maskgen.recipes.budget import KIND_TAGS, Best, KeepCurve, Phase, TrainSettings
from maskgen.recipes.checks import check_phases, check_together
from maskgen.recipes.overrides import apply_overrides, take_own_text
from maskgen.recipes.schema import GuidanceSettings, Recipe, StartSettings
from maskgen.recipes.tree import RecipeError, put, read_tree
from maskgen.tokenizers import TOKENIZERS


def load_recipe(source: str | Path | Recipe, overrides: Sequence[str] | Mapping[str, object] = ()) -> Recipe:
    """A recipe with overrides applied.

    Args:
        source: a name of `maskgen recipes` (its last part alone where unique), a YAML file, or a recipe.
        overrides: `["train.steps=500"]`, see `recipes.overrides`, or `{"train.steps": 500}`.

    Raises:
        RecipeError: no such recipe, unreadable YAML, unknown key, wrong type or impossible value.
    """
    tree = source.model_dump(mode="json", exclude_none=True) if isinstance(source, Recipe) else read_tree(str(source))
    if isinstance(overrides, Mapping):
        take_own_text(tree, overrides.keys())
        for key, value in overrides.items():
            put(tree, key, value)
    else:
        apply_overrides(tree, overrides)
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, object]) -> Recipe:
    """Validate a recipe, its parts included: all that can be known before anything is built.

    Raises:
        RecipeError: see `load_recipe`.
    """
    process = tree.get("process")
    name = process.get("type") if isinstance(process, Mapping) else process
    if name in PROCESSES.names():
        entry: Any = PROCESSES.get(name)
        tree = {"sampler": entry.default_sampler, **tree}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error)) from None
    parts: list[tuple[Registry[Any], str]] = [
        (DATASETS, "data"), (PROCESSES, "process"), (OBJECTIVES, "objective")
    ]  # fmt: skip
    if recipe.model is not None:
        parts.append((MODELS, "model"))
    if recipe.tokenizer is not None and recipe.tokenizer_source is None:
        parts.append((TOKENIZERS, "tokenizer"))
    for registry, key in parts:
        _check(registry, getattr(recipe, key), key)
    _check(recipe.samplers, recipe.sampler, "sampler")
    if recipe.model is None and (recipe.tokenizer is None or recipe.tokenizer_source is not None):
        raise RecipeError("nothing to train: give a model, or a tokenizer of a type that learns")
    recipe.build_guidance()
    recipe.build_sampler()
    check_phases(recipe)
    check_together(recipe)
    return recipe


def _explain(error: ValidationError) -> str:
    """Faults of a recipe, each with the keys accepted where it stands."""
    lines = []
    for fault in error.errors():
        schema = _accepted(fault["loc"])
        loc = tuple(part for part in fault["loc"] if part not in KIND_TAGS)
        lines.append(explain([{**fault, "loc": loc}], "", list(schema.model_fields)))
    return "\n".join(lines)


def _accepted(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """What the keys beside a faulty one belong to."""
    if "curve" in loc:
        return KeepCurve
    if "phases" in loc[:-1]:
        return Phase
    if "keep_best" in loc[:-1]:
        return Best
    if "views" in loc[:-1]:
        return Views
    sections: dict[str, type[BaseModel]] = {
        "train": TrainSettings, "guidance": GuidanceSettings, "captions": CaptionSettings, "start": StartSettings,
    }  # fmt: skip
    return sections.get(str(loc[0]), Recipe) if len(loc) > 1 else Recipe


def _check(registry: Registry[Any], spec: Spec, path: str) -> None:
    try:
        registry.check(spec, path)
    except SpecError as error:
        raise RecipeError(str(error)) from None
