"""Recipes: load, override, validate, build. The only file that knows every kind of part."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from maskgen.data.images import DATASETS, ImageSource
from maskgen.errors import UserError
from maskgen.guidance import Guidance
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, Objective
from maskgen.processes import PROCESSES
from maskgen.registry import Registry, Spec, SpecError, explain
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.shipped import recipe_names, recipe_text
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer

T = TypeVar("T")
Task = Literal["generator", "tokenizer", "classifier"]
Share = Annotated[float, Field(ge=0, lt=1)]


class RecipeError(UserError):
    """A recipe that cannot be read or built."""


class TrainSettings(BaseModel):
    """How a recipe is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(128, ge=1, description="of all processes and accumulation steps together")
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    ema: Share = Field(0.999, description="0 is off")
    keep_ratio: float = Field(1.0, gt=0, le=1)
    flip: bool = False
    precision: Literal["auto", "no", "bf16"] = "auto"
    workers: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0, description="0 is off")
    validation_images: int = Field(1000, ge=0, description="of the test split, at every checkpoint; 0 is off")
    tensorboard: bool = True


class GuidanceSettings(BaseModel):
    """Fields of `maskgen.guidance.Guidance`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = 1.0
    ramp: Literal["constant", "linear", "power_cosine"] = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)


class Recipe(BaseModel):
    """One point of the design space, validated. Without `model` it trains its tokenizer.

    A tokenizer is built from its spec, or `{from: CHECKPOINT}` takes a trained one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str = ""
    seed: int = 0
    data: str | dict[str, Any]
    tokenizer: str | dict[str, Any] | None = None
    process: str | dict[str, Any] = "absorbing"
    model: str | dict[str, Any] | None = None
    objective: str | dict[str, Any]
    sampler: str | dict[str, Any] = "maskgit"
    guidance: GuidanceSettings = GuidanceSettings()
    train: TrainSettings = TrainSettings()

    @property
    def task(self) -> Task:
        """What the recipe trains."""
        if self.model is None:
            return "tokenizer"
        return "classifier" if self.tokenizer is None else "generator"

    @property
    def tokenizer_source(self) -> str | None:
        """The checkpoint a trained tokenizer comes from."""
        if isinstance(self.tokenizer, dict) and set(self.tokenizer) == {"from"}:
            return str(self.tokenizer["from"])
        return None

    def build_data(self) -> ImageSource:
        return _build(DATASETS, self.data, "data")

    def build_tokenizer(self, image_shape: tuple[int, int, int]) -> ImageTokenizer:
        if self.tokenizer is None:
            raise RecipeError("this recipe has no tokenizer")
        return _build(TOKENIZERS, self.tokenizer, "tokenizer", image_shape=image_shape)

    def build_model(
        self, n_classes: int, image_shape: tuple[int, int, int], tokenizer: ImageTokenizer | None = None
    ) -> nn.Module:
        if self.model is None:
            raise RecipeError("this recipe has no model")
        derived: dict[str, Any] = {"n_classes": n_classes, "image_shape": image_shape}
        if tokenizer is not None:
            derived |= {"vocab_size": tokenizer.vocab_size, "grid": tokenizer.grid}
        return _build(MODELS, self.model, "model", **derived)

    def build_objective(self, vocab_size: int = 0) -> Objective:
        derived = {}
        name, _ = OBJECTIVES.check(self.objective, "objective")
        takes_tokens = "process" in inspect.signature(OBJECTIVES.get(name)).parameters
        if takes_tokens != (self.task == "generator"):
            raise RecipeError(
                f"objective: {name} does not train a {self.task}; choose another or add the missing parts"
            )
        if takes_tokens:
            if not vocab_size:
                raise RecipeError("process: absorbing needs a tokenizer with a vocabulary; this one's are continuous")
            derived["process"] = _build(PROCESSES, self.process, "process", vocab_size=vocab_size)
        return _build(OBJECTIVES, self.objective, "objective", **derived)

    def build_sampler(self, **overrides: Any) -> MaskedSampler:
        """The recipe's sampler with arguments replaced, or another `type` with its own defaults."""
        spec = {"type": self.sampler} if isinstance(self.sampler, str) else dict(self.sampler)
        if overrides.get("type", spec["type"]) != spec["type"]:
            spec = {}
        return _build(SAMPLERS, spec | overrides, "sampler")

    def build_guidance(self) -> Guidance:
        try:
            return Guidance(**self.guidance.model_dump())
        except ValueError as error:
            raise RecipeError(f"guidance: {error}") from error

    def dump(self, is_brief: bool = False) -> str:
        """The resolved recipe as YAML, without what is at its default if brief; loading it gives this recipe again."""
        tree = self.model_dump(mode="json", exclude_none=True, exclude_defaults=is_brief)
        text: str = yaml.safe_dump(tree, sort_keys=False, width=110)
        return text


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name (its last part alone where unique) or YAML file, with `key=value` overrides applied.

    Raises:
        RecipeError: no such recipe, unreadable YAML, unknown key, wrong type or impossible value.
    """
    tree = _read(str(source))
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Validate a recipe, its parts included: all that can be known before anything is built.

    Raises:
        RecipeError: see `load_recipe`.
    """
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error)) from None
    parts: list[tuple[Registry[Any], str]] = [
        (DATASETS, "data"), (PROCESSES, "process"), (OBJECTIVES, "objective"), (SAMPLERS, "sampler")
    ]  # fmt: skip
    if recipe.model is not None:
        parts.append((MODELS, "model"))
    if recipe.tokenizer is not None and recipe.tokenizer_source is None:
        parts.append((TOKENIZERS, "tokenizer"))
    for registry, key in parts:
        try:
            registry.check(getattr(recipe, key), key)
        except SpecError as error:
            raise RecipeError(str(error)) from None
    if recipe.model is None and (recipe.tokenizer is None or recipe.tokenizer_source is not None):
        raise RecipeError("nothing to train: give a model, or a tokenizer of a type that learns")
    if recipe.train.batch_size % recipe.train.accumulate:
        raise RecipeError(
            f"train.batch_size must be a multiple of train.accumulate, got {recipe.train.batch_size} and "
            f"{recipe.train.accumulate}"
        )
    recipe.build_guidance()
    recipe.build_sampler()
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """What no part can know alone: a key that another makes useless or impossible."""
    is_generator = recipe.task == "generator"
    if recipe.model is not None:
        name = MODELS.check(recipe.model)[0]
        if ("vocab_size" in inspect.signature(MODELS.get(name)).parameters) != is_generator:
            raise RecipeError(f"model: {name} {'takes no' if is_generator else 'needs a'} tokenizer; change either")
    objective = recipe.build_objective(vocab_size=2)  # its values do not depend on how many tokens there are
    if is_generator and recipe.train.flip:
        raise RecipeError("train.flip: true mirrors images, a generator trains on stored tokens; leave it out")
    if not is_generator and recipe.train.keep_ratio < 1:
        raise RecipeError(f"train.keep_ratio: {recipe.train.keep_ratio} drops tokens, a {recipe.task} has none; use 1")
    has_null = not isinstance(recipe.model, dict) or recipe.model.get("has_null_label", True)
    dropout, scale = getattr(objective, "label_dropout", 0.0), recipe.guidance.scale
    if not has_null and (dropout or scale != 1):
        raise RecipeError(
            "model.has_null_label: false leaves nothing to drop a label for: objective.label_dropout must be 0 and "
            f"guidance.scale 1, got {dropout} and {scale}"
        )


def _read(source: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree of a named recipe or a file, its `base:` merged in; `above` are those it is a base of."""
    if source in above:
        raise RecipeError(f"base: {' -> '.join([*above, source])} goes round in a circle")
    tree = _parse_yaml(*_find(source))
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = Path(source).expanduser().parent / str(base)  # a file's base may be a file beside it
    return _merge(_read(str(beside if beside.is_file() else base), (*above, source)), tree)


def _find(source: str) -> tuple[str, str]:
    """(where, text) of a recipe."""
    path = Path(source).expanduser()
    if source.endswith((".yaml", ".yml")) or path.is_file():
        try:
            return source, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read recipe {source}: {getattr(error, 'strerror', None) or error}") from None
    names = recipe_names()
    found = [name for name in names if name == source] or [name for name in names if name.split("/")[-1] == source]
    if len(found) == 1:
        return found[0], recipe_text(found[0])
    if found:
        raise RecipeError(f"recipe {source!r} is ambiguous: {', '.join(found)}")
    close = difflib.get_close_matches(source, [*names, *(name.split("/")[-1] for name in names)], 3, 0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise RecipeError(f"no recipe or YAML file {source!r}; {hint}`maskgen recipes` lists them")


def _parse_yaml(where: str, text: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys")
    return tree


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, recursively; a part of another type replaces the whole part."""
    merged = copy.deepcopy(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and _is_same_part(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _is_same_part(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    is_trained = "from" in old or "from" in new
    return not is_trained and new.get("type", old.get("type")) == old.get("type")


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value`; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"an override is key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{key}: the value {text!r} is not YAML") from None
    *parents, last = key.replace("-", "_").split(".")
    place = tree
    for parent in parents:
        inner = place.get(parent)
        if inner is None or isinstance(inner, str):
            inner = place[parent] = {} if inner is None else {"type": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {parent} is a value ({inner!r}), it has no keys")
        place = inner
    place[last] = value


def _explain(error: ValidationError) -> str:
    """Faults of a recipe, each with the keys accepted where it stands."""
    accepted: dict[str, type[BaseModel]] = {"train": TrainSettings, "guidance": GuidanceSettings}
    lines = []
    for fault in error.errors():
        schema = accepted.get(str(fault["loc"][0]), Recipe) if len(fault["loc"]) > 1 else Recipe
        lines.append(explain([fault], "", list(schema.model_fields)))
    return "\n".join(lines)


def _build(registry: Registry[T], spec: Spec, path: str, **derived: Any) -> T:
    try:
        return registry.build(spec, path, **derived)
    except SpecError as error:
        raise RecipeError(str(error)) from error
