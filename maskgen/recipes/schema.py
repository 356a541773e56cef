"""Recipes: load, override, validate, build. The only file that knows every kind of part."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict
from torch import nn

from maskgen.core.registry import Registry, Spec, SpecError
from maskgen.core.streams import StreamKind, TokenLayout, vocab_size_of
from maskgen.data.base import DATASETS, ImageSource, TextSource
from maskgen.data.image.captions import CaptionSettings
from maskgen.models import MODELS
from maskgen.nn.lora import LoraSettings
from maskgen.objectives import OBJECTIVES, Objective, traits_of_objective
from maskgen.processes import PROCESSES, Absorbing, Gaussian, Process
from maskgen.recipes.budget import TrainSettings
from maskgen.recipes.streams import StreamSettings, smallest_layout
from maskgen.recipes.tree import RecipeError
from maskgen.samplers import FIELD_SAMPLERS, SAMPLERS, FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance, Ramp
from maskgen.schedules import Schedule
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer
from maskgen.tokenizers.base import has_pixels, is_discrete
from maskgen.tokenizers.text.tokenizer import TextTokenizer

T = TypeVar("T")
Task = Literal["generator", "tokenizer", "classifier"]


class GuidanceSettings(BaseModel):
    """Fields of `maskgen.samplers.guidance.Guidance`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: float = 1.0
    ramp: Ramp = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int = 0


class StartSettings(BaseModel):
    """Where the weights of a run come from; without it they are initialised.

    Attributes:
        checkpoint: zoo name, checkpoint or run directory, or hub id.
        weights: averaged ones, which are sampled (`ema`), or those that training goes on with (`model`).
        skip: patterns of tensors that are not taken from the checkpoint; those of the network stay as initialised.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    weights: Literal["ema", "model"] = "ema"
    skip: tuple[str, ...] = ()


class Recipe(BaseModel):
    """One point of the design space, validated. Without `model` it trains its tokenizer.

    A tokenizer is built from its spec, or `{from: CHECKPOINT}` takes a trained one. With `streams` a row holds several
    parts of a sample, in their order; without, it is the picture or the text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str = ""
    seed: int = 0
    data: str | dict[str, Any]
    tokenizer: str | dict[str, Any] | None = None
    captions: CaptionSettings | None = None
    streams: dict[str, StreamSettings] | None = None
    process: str | dict[str, Any] = "absorbing"
    model: str | dict[str, Any] | None = None
    objective: str | dict[str, Any]
    sampler: str | dict[str, Any] = "maskgit"
    guidance: GuidanceSettings = GuidanceSettings()
    start: StartSettings | None = None
    train: TrainSettings = TrainSettings()

    @property
    def task(self) -> Task:
        """What the recipe trains."""
        if self.model is None:
            return "tokenizer"
        return "classifier" if self.tokenizer is None else "generator"

    @property
    def lora(self) -> LoraSettings | None:
        """Low-rank changes that are trained in place of the network's weights."""
        return None if self.model is None else MODELS.check(self.model, "model")[1].get("lora")

    @property
    def is_pretrained(self) -> bool:
        """Whether the network is loaded by another library, with sizes and weights of its own."""
        if self.model is None:
            return False
        name, arguments = MODELS.check(self.model, "model")
        takes_architecture = "architecture" in inspect.signature(MODELS.get(name)).parameters
        return takes_architecture and arguments.get("source") is not None

    @property
    def data_entry(self) -> type[ImageSource | TextSource]:
        """The class of the data, with its declared traits."""
        return cast(type[ImageSource | TextSource], DATASETS.get(DATASETS.check(self.data, "data")[0]))

    @property
    def kind(self) -> StreamKind:
        """The kind of data."""
        return self.data_entry.kind

    @property
    def has_text(self) -> bool:
        """Whether rows hold text, whose tokenizer belongs to the checkpoint."""
        return self.kind == "text" or (self.streams is not None and "caption" in self.streams)

    @property
    def stand_in(self) -> TokenLayout | int:
        """What objective and process are built for where the number of tokens does not matter."""
        if self.streams is not None:
            return smallest_layout(self.streams)
        return 2 if self.has_discrete_tokens else 0

    @property
    def has_answers(self) -> bool:
        """Whether rows are a prompt, which is never masked, and an answer."""
        return issubclass(self.data_entry, TextSource) and self.data_entry.has_answers

    @property
    def has_discrete_tokens(self) -> bool:
        """Whether tokens are ids of a vocabulary; tokenizers that are trained make such."""
        if self.tokenizer is None or self.tokenizer_source is not None:
            return True
        return is_discrete(TOKENIZERS.check(self.tokenizer, "tokenizer")[0])

    @property
    def has_pixels(self) -> bool:
        """Whether tokens are patches of pixels."""
        if self.tokenizer is None or self.tokenizer_source is not None or self.kind == "text":
            return False
        return has_pixels(TOKENIZERS.check(self.tokenizer, "tokenizer")[0])

    @property
    def is_field(self) -> bool:
        """Whether the network predicts the field of a continuous process; if not, tokens are masked."""
        entry: Any = PROCESSES.get(PROCESSES.check(self.process, "process")[0])
        is_field: bool = entry.is_field
        return is_field

    @property
    def samplers(self) -> Registry[Any]:
        """Those that can sample what it trains."""
        return FIELD_SAMPLERS if self.is_field else SAMPLERS

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
        tokenizer: ImageTokenizer = self._tokenizer(image_shape=image_shape)
        return tokenizer

    def build_text_tokenizer(self, source: TextSource) -> TextTokenizer:
        """A text tokenizer, made from the documents of a source where its type learns from data."""
        made: TextTokenizer = self._tokenizer(corpus=lambda: source.documents("train"), held_out=source.held_out)
        return made.stopping_at_eos() if source.has_answers else made

    def build_caption_tokenizer(self, captions: Sequence[str]) -> TextTokenizer:
        """The tokenizer of the captions in a row, made from those of training where its type learns from data."""
        spec = None if self.streams is None or "caption" not in self.streams else self.streams["caption"].tokenizer
        if spec is None:
            raise RecipeError("this recipe has no captions in its rows")
        made: TextTokenizer = _build(TOKENIZERS, spec, "streams.caption.tokenizer", corpus=lambda: iter(captions))  # type: ignore[assignment]
        return made

    def _tokenizer(self, **derived: object) -> Any:
        if self.tokenizer is None:
            raise RecipeError("this recipe has no tokenizer")
        return _build(TOKENIZERS, self.tokenizer, "tokenizer", **derived)

    def build_model(self, **derived: object) -> nn.Module:
        """The network; `derived` are those of `MODELS.derived` that it takes."""
        if self.model is None:
            raise RecipeError("this recipe has no model")
        return _build(MODELS, self.model, "model", **derived)

    def build_process(self, layout: TokenLayout | int) -> Process:
        """For rows of a layout; a number V stands for one stream of V ids (0: continuous tokens) of any length."""
        return _build(PROCESSES, self.process, "process", layout=layout)

    def field_process(self) -> Gaussian | None:
        """The Gaussian process, None where tokens are masked."""
        return cast(Gaussian, self.build_process(0)) if self.is_field else None

    def masking_schedule(self) -> Schedule | None:
        """The schedule that tokens are masked by in training, None if there is none."""
        process = None if self.is_field else self.build_process(0)
        return process.schedule if isinstance(process, Absorbing) else None

    def build_objective(self, layout: TokenLayout | int = 0) -> Objective:
        """For rows of a layout; a number V stands for one stream of V ids (0: continuous tokens) of any length."""
        name, _ = OBJECTIVES.check(self.objective, "objective")
        parameters = inspect.signature(OBJECTIVES.get(name)).parameters
        traits = traits_of_objective(name)
        takes_tokens = traits.inputs != "images"
        if takes_tokens != (self.task == "generator"):
            raise RecipeError(
                f"objective: {name} does not train a {self.task}; choose another or add the missing parts"
            )
        derived: dict[str, object] = {"layout": layout}
        if takes_tokens and bool(vocab_size_of(layout)) != self.has_discrete_tokens:
            made, needed = ("continuous", "discrete") if self.has_discrete_tokens else ("discrete", "continuous")
            raise RecipeError(f"tokenizer: its tokens are {made}, the recipe needs {needed} ones; change either")
        if isinstance(layout, TokenLayout) and len(layout.streams) > 1 and not traits.has_streams:
            names = ", ".join(layout.index_of)
            raise RecipeError(f"objective: {name} supports rows of one stream, got {names}; use masked_tokens")
        if "process" in parameters:
            derived["process"] = self.build_process(layout)
        elif takes_tokens and self.process != Recipe.model_fields["process"].default:
            raise RecipeError(f"process: objective {name} corrupts nothing; leave it out")
        return _build(OBJECTIVES, self.objective, "objective", **derived)

    def build_sampler(self, **overrides: object) -> MaskedSampler | FieldSampler:
        """The recipe's sampler with arguments replaced, or another `type` with its own defaults."""
        spec = {"type": self.sampler} if isinstance(self.sampler, str) else dict(self.sampler)
        if overrides.get("type", spec["type"]) != spec["type"]:
            spec = {}
        sampler: MaskedSampler | FieldSampler = _build(self.samplers, spec | overrides, "sampler")
        return sampler

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


def anywhere(recipe: Recipe) -> Recipe:
    """The recipe with attention `auto`: what it was trained with may not run here."""
    if isinstance(recipe.model, dict) and "attention" in recipe.model:
        return recipe.model_copy(update={"model": {**recipe.model, "attention": "auto"}})
    return recipe


def merged(recipe: Recipe) -> Recipe:
    """The recipe of a network whose low-rank changes have been added to its weights."""
    if recipe.lora is None or not isinstance(recipe.model, dict):
        return recipe
    model = {key: value for key, value in recipe.model.items() if key != "lora"}
    return recipe.model_copy(update={"model": model})


def _build(registry: Registry[T], spec: Spec, path: str, **derived: object) -> T:
    try:
        return registry.build(spec, path, **derived)
    except SpecError as error:
        raise RecipeError(str(error)) from error
