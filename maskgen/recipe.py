"""Recipes: load, override, validate, build. The only file that knows every kind of part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from maskgen.budget import KIND_TAGS, KeepCurve, Phase, TrainSettings
from maskgen.data.images import DATASETS, ImageSource
from maskgen.data.text import TextSource
from maskgen.guidance import Guidance
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, Objective
from maskgen.processes import PROCESSES, Process
from maskgen.recipe_checks import check_phases
from maskgen.recipe_tree import RecipeError, override, read_tree
from maskgen.registry import Registry, Spec, SpecError, explain
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer
from maskgen.tokenizers.text import TextTokenizer

T = TypeVar("T")
Task = Literal["generator", "tokenizer", "classifier"]


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
    def is_text(self) -> bool:
        """Whether the data are text, not images."""
        entry = DATASETS.get(DATASETS.check(self.data, "data")[0])
        return inspect.isclass(entry) and issubclass(entry, TextSource)

    @property
    def tokenizer_source(self) -> str | None:
        """The checkpoint a trained tokenizer comes from."""
        if isinstance(self.tokenizer, dict) and set(self.tokenizer) == {"from"}:
            return str(self.tokenizer["from"])
        return None

    def at(self, resolution: int | None) -> Recipe:
        """The recipe with its images brought to another size; itself for None."""
        if resolution is None:
            return self
        name, _ = DATASETS.check(self.data, "data")
        spec = {"type": name} if isinstance(self.data, str) else self.data
        return self.model_copy(update={"data": {**spec, "size": resolution}})

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, without looking for them."""
        name, arguments = DATASETS.check(self.data, "data")
        return cast(type[ImageSource], DATASETS.get(name)).shape_of(arguments)

    def row_length(self) -> int:
        """Tokens in a training row of text, without looking for the text."""
        name, arguments = DATASETS.check(self.data, "data")
        default = inspect.signature(DATASETS.get(name)).parameters["length"].default
        return int(arguments.get("length", default))

    def build_data(self) -> ImageSource:
        return cast(ImageSource, _build(DATASETS, self.data, "data"))

    def build_text(self) -> TextSource:
        return cast(TextSource, _build(DATASETS, self.data, "data"))

    def build_tokenizer(self, image_shape: tuple[int, int, int]) -> ImageTokenizer:
        return cast(ImageTokenizer, self._tokenizer(image_shape=image_shape))

    def build_text_tokenizer(self, corpus: Callable[[], Iterator[str]]) -> TextTokenizer:
        """A text tokenizer, made from the training documents."""
        return cast(TextTokenizer, self._tokenizer(corpus=corpus))

    def _tokenizer(self, **derived: Any) -> Any:
        if self.tokenizer is None:
            raise RecipeError("this recipe has no tokenizer")
        return _build(TOKENIZERS, self.tokenizer, "tokenizer", **derived)

    def build_model(self, **derived: Any) -> nn.Module:
        """The network; `derived` are those of vocab_size, grid, n_classes and image_shape that it takes."""
        if self.model is None:
            raise RecipeError("this recipe has no model")
        return _build(MODELS, self.model, "model", **derived)

    def build_process(self, vocab_size: int) -> Process:
        return _build(PROCESSES, self.process, "process", vocab_size=vocab_size)

    def build_objective(self, vocab_size: int = 0) -> Objective:
        name, _ = OBJECTIVES.check(self.objective, "objective")
        wanted = inspect.signature(OBJECTIVES.get(name)).parameters
        takes_tokens = bool({"process", "vocab_size"} & set(wanted))
        if takes_tokens != (self.task == "generator"):
            raise RecipeError(
                f"objective: {name} does not train a {self.task}; choose another or add the missing parts"
            )
        derived: dict[str, Any] = {"vocab_size": vocab_size}
        if takes_tokens and not vocab_size:
            raise RecipeError(f"objective: {name} needs a tokenizer with a vocabulary; this one's are continuous")
        if "process" in wanted:
            derived["process"] = self.build_process(vocab_size)
        elif takes_tokens and self.process != "absorbing":
            raise RecipeError(f"process: objective {name} corrupts nothing; leave it out")
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
    tree = read_tree(str(source))
    for change in overrides:
        override(tree, change)
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
    recipe.build_guidance()
    recipe.build_sampler()
    _check_together(recipe)
    check_phases(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """What no part can know alone: a key that another makes useless or impossible."""
    is_generator = recipe.task == "generator"
    _check_kinds(recipe)
    objective = recipe.build_objective(vocab_size=2)  # its values do not depend on how many tokens there are
    if is_generator and recipe.train.flip:
        raise RecipeError("train.flip: true mirrors images, a generator trains on stored tokens; leave it out")
    kept = recipe.train.lowest_keep_ratio
    if not is_generator and kept < 1:
        raise RecipeError(f"train.keep_ratio: {kept} drops tokens, a {recipe.task} has none; use 1")
    if is_generator:
        _check_objective(recipe)
    elif recipe.train.document_attention:
        raise RecipeError("train.document_attention: only a text has documents; leave it out")
    if recipe.is_text:
        if recipe.guidance.scale != 1:
            raise RecipeError(
                f"guidance.scale: text has no classes to be guided by; use 1, got {recipe.guidance.scale}"
            )
        return
    has_null = _has_null_label(recipe)
    dropout, scale = getattr(objective, "label_dropout", 0.0), recipe.guidance.scale
    if not has_null and (dropout or scale != 1):
        raise RecipeError(
            "model.has_null_label: false leaves nothing to drop a label for: objective.label_dropout must be 0 and "
            f"guidance.scale 1, got {dropout} and {scale}"
        )


def _has_null_label(recipe: Recipe) -> bool:
    """Whether the model knows "no class": by its key, or for good where it has none."""
    if isinstance(recipe.model, dict) and "has_null_label" in recipe.model:
        return bool(recipe.model["has_null_label"])
    return recipe.model is None or getattr(MODELS.get(MODELS.check(recipe.model)[0]), "has_null_label", True)


def _check_kinds(recipe: Recipe) -> None:
    """Whether data, tokenizer, model and objective are made for each other."""
    is_generator = recipe.task == "generator"
    if recipe.is_text and not is_generator:
        raise RecipeError("text needs a model and a tokenizer: tokenizer: characters, say")
    if recipe.tokenizer is not None and recipe.tokenizer_source is None:
        name = TOKENIZERS.check(recipe.tokenizer)[0]
        entry = TOKENIZERS.get(name)
        if recipe.is_text == (inspect.isclass(entry) and issubclass(entry, ImageTokenizer)):
            raise RecipeError(f"tokenizer: {name} is not for {'text' if recipe.is_text else 'images'}; choose another")
    elif recipe.is_text:
        raise RecipeError(
            "tokenizer: a text tokenizer is made from the data or read from a file, not `from` a checkpoint"
        )
    if recipe.model is None:
        return
    model, objective = MODELS.check(recipe.model)[0], OBJECTIVES.check(recipe.objective)[0]
    wanted = inspect.signature(MODELS.get(model)).parameters
    if ("vocab_size" in wanted) != is_generator:
        raise RecipeError(f"model: {model} {'takes no' if is_generator else 'needs a'} tokenizer; change either")
    if recipe.is_text and "grid" in wanted:
        raise RecipeError(f"model: {model} lives on a grid of image tokens; for text choose mdlm, bd3 or ar")
    trained_by: tuple[str, ...] = cast(Any, MODELS.get(model)).objectives
    if objective not in trained_by:
        raise RecipeError(f"objective: {model} is trained by {' or '.join(trained_by)}, not by {objective}")


def _check_objective(recipe: Recipe) -> None:
    """Keys that only some objectives of a generator heed."""
    model, arguments = MODELS.check(recipe.model or "")
    objective, train = OBJECTIVES.check(recipe.objective)[0], recipe.train
    kept = train.lowest_keep_ratio
    if kept < 1 and objective != "masked_tokens":
        raise RecipeError(f"train.keep_ratio: objective {objective} drops no tokens; use 1, got {kept}")
    if train.document_attention and (not recipe.is_text or model != "mdlm" or objective != "masked_tokens"):
        raise RecipeError(
            "train.document_attention: only a text model of type mdlm with objective masked_tokens can; leave it out"
        )
    if train.document_attention and kept < 1:
        raise RecipeError(
            f"train.keep_ratio: dropped tokens do not go with train.document_attention; use 1, got {kept}"
        )
    if arguments.get("has_exponents", False) != (objective == "state_dependent"):
        raise RecipeError(
            "model.has_exponents: true goes with objective state_dependent, which learns them; change either"
        )


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
    sections: dict[str, type[BaseModel]] = {"train": TrainSettings, "guidance": GuidanceSettings}
    return sections.get(str(loc[0]), Recipe) if len(loc) > 1 else Recipe


def _build(registry: Registry[T], spec: Spec, path: str, **derived: Any) -> T:
    try:
        return registry.build(spec, path, **derived)
    except SpecError as error:
        raise RecipeError(str(error)) from error
