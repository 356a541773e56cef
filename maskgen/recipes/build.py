"""From a recipe and facts of its data to the parts of a run: the one place where networks are built.

Training takes the facts from its data, sampling from a checkpoint, and `maskgen cost` assumes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from maskgen.core.errors import first_line, is_out_of_memory
from maskgen.core.streams import Stream, TokenLayout
from maskgen.data.base import ImageSource, TextSource
from maskgen.models import change_grid
from maskgen.nn.counting import TooLargeError, counted
from maskgen.objectives import Objective
from maskgen.processes import Gaussian
from maskgen.recipes.schema import Recipe
from maskgen.recipes.tree import RecipeError
from maskgen.samplers import FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.schedules import Schedule
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import RowTokenizer
from maskgen.tokenizers.text.specials import Specials
from maskgen.tokenizers.text.tokenizer import TextTokenizer

ImageShape = tuple[int, int, int]
AnyTokenizer = ImageTokenizer | TextTokenizer | RowTokenizer

MOST_PARTS, MOST_ELEMENTS = 500_000, 2**43
"""Modules, parameters and buffers of a network, and numbers in them, that a recipe may ask for."""


@dataclass(frozen=True)
class DataFacts:
    """Sizes of the data that networks and objectives depend on.

    Attributes:
        n_classes: number of labels; 0 without.
        image_shape: (C, H, W) of images; None for text.
        built_for: (C, H, W) that the network was built with, if phases have changed the resolution since.
        built_grid: grid of tokens that the network was built with, if it was trained on another one before.
        architecture: stored configuration of a network of another library; None to read it from its source.
        length: tokens in a row of text; 0 for images.
        caption_shape: (S, C) of an embedded caption; None without.
        n_map_classes: number of classes in segmentation maps; 0 without maps.
        target_width: numbers that the network predicts per token, as `Objective.target_width`; 0 for those of a token.
    """

    n_classes: int = 0
    image_shape: ImageShape | None = None
    built_for: ImageShape | None = None
    built_grid: tuple[int, ...] | None = None
    architecture: Mapping[str, object] | None = None
    length: int = 0
    caption_shape: tuple[int, int] | None = None
    n_map_classes: int = 0
    target_width: int = 0

    @classmethod
    def of(cls, source: ImageSource | TextSource, caption_shape: tuple[int, int] | None = None) -> DataFacts:
        """Facts of a data set."""
        if isinstance(source, TextSource):
            return cls(length=source.length)
        n_map_classes = len(source.map_classes)
        return cls(len(source.classes), source.image_shape, caption_shape=caption_shape, n_map_classes=n_map_classes)


@dataclass(frozen=True)
class System:
    """A recipe built for its data. Process, objective, sampler and guidance are built on first use.

    Attributes:
        network: of the recipe's model; a tokenizer or classifier where the recipe trains one.
        tokenizer: of a generator; None for other tasks, and where only the layout is known.
        layout: of the rows of a generator; None for other tasks.
        source: what the objective's `checkpoint` names; None without one, and outside of training.
    """

    recipe: Recipe
    facts: DataFacts
    network: nn.Module
    tokenizer: AnyTokenizer | None = None
    layout: TokenLayout | None = None
    source: nn.Module | None = None

    @cached_property
    def objective(self) -> Objective:
        """The training loss, with copies of the network as it is at the first use."""
        objective = _objective(self.recipe, self.layout)
        try:
            objective.attach(self.network, self.source)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        return objective

    @cached_property
    def field_process(self) -> Gaussian | None:
        """The Gaussian process whose field the network predicts; None where tokens are masked."""
        return self.recipe.field_process()

    @cached_property
    def masking_schedule(self) -> Schedule | None:
        """The schedule that training masks tokens by; None if there is none."""
        return self.recipe.masking_schedule()

    @cached_property
    def sampler(self) -> MaskedSampler | FieldSampler:
        """The recipe's sampler."""
        return self.recipe.build_sampler()

    @cached_property
    def guidance(self) -> Guidance:
        """The recipe's guidance."""
        return self.recipe.build_guidance()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a training sample: tokens (L,) or (L, D), or an image (C, H, W)."""
        if self.layout is None:
            return _image_shape(self.facts)
        return (self.layout.length, *([] if self.layout.has_discrete_tokens else [self.layout.width]))


@contextmanager
def possible_sizes() -> Iterator[None]:
    """Context in which a network is built from the sizes of a recipe, which may be beyond any machine.

    Raises:
        RecipeError: they are, or PyTorch refuses them.
    """
    try:
        with counted(MOST_PARTS, MOST_ELEMENTS):
            yield
    except (TooLargeError, OverflowError) as error:
        raise RecipeError("the sizes of this recipe make a network beyond any machine") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RecipeError(f"no network of the sizes of this recipe can be built: {first_line(error)}") from error


def build_system(
    recipe: Recipe,
    facts: DataFacts,
    tokenizer: AnyTokenizer | None = None,
    *,
    layout: TokenLayout | None = None,
    built_on: TokenLayout | None = None,
    source: nn.Module | None = None,
) -> System:
    """Build the network of a recipe, on the default device.

    Args:
        recipe: what is trained.
        facts: sizes of its data.
        tokenizer: of a generator.
        layout: of a generator whose tokenizer is not there.
        built_on: layout that the network is built with before its grid is changed to that of `layout`.
        source: what the objective's `checkpoint` names, for training.

    Raises:
        RecipeError: a part refuses these sizes.
        UserError: the network cannot change its grid.
    """
    if layout is None and tokenizer is not None:
        layout = layout_of(tokenizer, facts)
    if layout is not None and not facts.target_width:
        facts = replace(facts, target_width=_objective(recipe, layout).target_width(source))
    if layout is not None and facts.built_grid is not None:
        built_on = TokenLayout.of(replace(layout.streams[0], shape=facts.built_grid))
    network = build_network(recipe, facts, built_on or layout)
    if layout is not None and built_on is not None:
        change_grid(network, layout.shape)
    return System(recipe, facts, network, tokenizer, layout, source)


def _objective(recipe: Recipe, layout: TokenLayout | None) -> Objective:
    return recipe.build_objective() if layout is None else recipe.build_objective(layout)


def build_network(recipe: Recipe, facts: DataFacts, layout: TokenLayout | None) -> nn.Module:
    """The network of a recipe, or the tokenizer that it trains; `layout` of a generator's rows."""
    if recipe.task == "tokenizer":
        return recipe.build_tokenizer(_image_shape(facts))
    caption_width = 0 if facts.caption_shape is None else facts.caption_shape[1]
    derived: dict[str, object] = {
        "n_classes": facts.n_classes,
        "caption_width": caption_width,
        "target_width": facts.target_width,
    }
    if facts.architecture is not None:
        derived["architecture"] = facts.architecture
    if facts.image_shape is not None:
        derived["image_shape"] = facts.built_for or facts.image_shape
    if layout is not None:
        derived |= {"vocab_size": layout.vocab_size, "token_width": layout.width, "grid": layout.shape}
        derived["layout"] = layout
    return recipe.build_model(**derived)


def layout_of(tokenizer: AnyTokenizer, facts: DataFacts) -> TokenLayout:
    """The rows of a tokenizer's tokens."""
    if isinstance(tokenizer, ImageTokenizer | RowTokenizer):
        return tokenizer.layout
    return text_layout(tokenizer.vocab_size, facts.length, tokenizer.specials)


def text_layout(vocab_size: int, length: int, specials: Specials = Specials()) -> TokenLayout:
    """Rows of text as one stream."""
    never, stop = specials.forbidden, specials.stop
    return TokenLayout.of(Stream("text", "text", vocab_size, (length,), forbidden=never, stop=stop))


def _image_shape(facts: DataFacts) -> ImageShape:
    if facts.image_shape is None:
        raise RecipeError("this recipe needs images, its data are text")
    return facts.image_shape
