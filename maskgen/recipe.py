"""Recipes: load, override, validate, build. The only file that knows every kind of part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from maskgen.budget import KIND_TAGS, Best, KeepCurve, Phase, TrainSettings, Views
from maskgen.data.captions import CaptionSettings
from maskgen.data.images import DATASETS, ImageSource
from maskgen.data.text import TextSource
from maskgen.guidance import Guidance, Ramp
from maskgen.models import MODELS
from maskgen.objectives import OBJECTIVES, Objective
from maskgen.processes import PROCESSES, Gaussian, Process
from maskgen.recipe_checks import check_phases, check_together
from maskgen.recipe_tree import RecipeError, override, read_tree
from maskgen.registry import Registry, Spec, SpecError, explain
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS, FieldSampler, MaskedSampler
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer
from maskgen.tokenizers.text import TextTokenizer

T = TypeVar("T")
Task = Literal["generator", "tokenizer", "classifier"]


class GuidanceSettings(BaseModel):
    """Fields of `maskgen.guidance.Guidance`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = 1.0
    ramp: Ramp = "constant"
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
    captions: CaptionSettings | None = None
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
    def is_continuous(self) -> bool:
        """Whether its tokens are vectors, not numbers of a vocabulary."""
        if self.tokenizer is None or self.tokenizer_source is not None:  # only tokenizers of numbers are trained
            return False
        return getattr(TOKENIZERS.get(TOKENIZERS.check(self.tokenizer, "tokenizer")[0]), "vocab_size", 1) == 0

    @property
    def is_gaussian(self) -> bool:
        """Whether its tokens drown in noise; if not, they are masked."""
        entry = PROCESSES.get(PROCESSES.check(self.process, "process")[0])
        return inspect.isclass(entry) and issubclass(entry, Gaussian)

    @property
    def samplers(self) -> Registry[Any]:
        """Those that can sample what it trains."""
        return FIELD_SAMPLERS if self.is_gaussian else SAMPLERS

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
        """The network; `derived` are those of `MODELS.derived` that it takes."""
        if self.model is None:
            raise RecipeError("this recipe has no model")
        return _build(MODELS, self.model, "model", **derived)

    def build_process(self, vocab_size: int, grid: tuple[int, int] | None = None) -> Process:
        """`grid` of image tokens; a text has none."""
        return _build(PROCESSES, self.process, "process", vocab_size=vocab_size, grid=grid)

    def field_process(self) -> Gaussian | None:
        """The Gaussian process, None where tokens are masked."""
        return cast(Gaussian, self.build_process(0)) if self.is_gaussian else None

    def build_objective(self, vocab_size: int = 0, grid: tuple[int, int] | None = None) -> Objective:
        """`grid` of image tokens, for whoever draws masks; a text has none."""
        name, _ = OBJECTIVES.check(self.objective, "objective")
        wanted = inspect.signature(OBJECTIVES.get(name)).parameters
        takes_tokens = bool({"process", "vocab_size"} & set(wanted))
        if takes_tokens != (self.task == "generator"):
            raise RecipeError(
                f"objective: {name} does not train a {self.task}; choose another or add the missing parts"
            )
        derived: dict[str, Any] = {"vocab_size": vocab_size, "grid": grid}
        if takes_tokens and bool(vocab_size) == self.is_continuous:
            kinds = ("numbers of a vocabulary", "continuous") if self.is_continuous else ("continuous", "numbers")
            raise RecipeError(f"tokenizer: its tokens are {kinds[0]}, the recipe needs {kinds[1]}; change either")
        if "process" in wanted:
            derived["process"] = self.build_process(vocab_size, grid)
        elif takes_tokens and self.process != "absorbing":
            raise RecipeError(f"process: objective {name} corrupts nothing; leave it out")
        return _build(OBJECTIVES, self.objective, "objective", **derived)

    def build_sampler(self, **overrides: Any) -> MaskedSampler | FieldSampler:
        """The recipe's sampler with arguments replaced, or another `type` with its own defaults."""
        spec = {"type": self.sampler} if isinstance(self.sampler, str) else dict(self.sampler)
        if overrides.get("type", spec["type"]) != spec["type"]:
            spec = {}
        return cast(MaskedSampler | FieldSampler, _build(self.samplers, spec | overrides, "sampler"))

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
    process = tree.get("process")
    if (process.get("type") if isinstance(process, Mapping) else process) == "gaussian":
        tree = {"sampler": "dpm", **tree}
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
    check_together(recipe)
    check_phases(recipe)
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
        "train": TrainSettings, "guidance": GuidanceSettings, "captions": CaptionSettings
    }  # fmt: skip
    return sections.get(str(loc[0]), Recipe) if len(loc) > 1 else Recipe


def _check(registry: Registry[Any], spec: Spec, path: str) -> None:
    try:
        registry.check(spec, path)
    except SpecError as error:
        raise RecipeError(str(error)) from None


def _build(registry: Registry[T], spec: Spec, path: str, **derived: Any) -> T:
    try:
        return registry.build(spec, path, **derived)
    except SpecError as error:
        raise RecipeError(str(error)) from error
