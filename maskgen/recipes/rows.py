"""Recipes whose rows hold several streams: their checks, and the tokenizer of a row."""

from __future__ import annotations

from maskgen.core.streams import StreamKind
from maskgen.core.traits import NetworkTraits
from maskgen.data.base import DATASETS
from maskgen.objectives import MaskedTokens, Objective
from maskgen.recipes.build import DataFacts
from maskgen.recipes.schema import Recipe
from maskgen.recipes.streams import KINDS, check_streams
from maskgen.recipes.tree import RecipeError
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import (
    CaptionStream,
    LabelStream,
    MapStream,
    PictureStream,
    RowTokenizer,
    StreamTokenizer,
)
from maskgen.tokenizers.text.tokenizer import TextTokenizer


def kinds_of(recipe: Recipe) -> tuple[StreamKind, ...]:
    """Kinds of the streams in a row."""
    if recipe.streams is None:
        return (recipe.kind,)
    return tuple(KINDS[name] for name in recipe.streams if name in KINDS)


def check_rows(recipe: Recipe) -> None:
    """Check a recipe with `streams` against its data and tokens.

    Raises:
        RecipeError: streams that the data do not have, continuous tokens, or keys that rows do not go with.
    """
    if recipe.streams is None:
        return
    check_streams(recipe.streams, recipe.data_entry.parts, DATASETS.check(recipe.data)[0])
    if recipe.task != "generator" or not recipe.has_discrete_tokens:
        raise RecipeError("streams: needs a model and a tokenizer of discrete tokens (vq, fsq, pixels, {from: ...})")
    if recipe.captions is not None or recipe.train.views is not None:
        raise RecipeError("streams: does not go with captions that are embedded, nor with train.views; leave them out")


def check_row_guidance(recipe: Recipe, traits: NetworkTraits, objective: Objective) -> None:
    """Check that a network takes several streams, and that guidance by a stream was trained.

    Raises:
        RecipeError: it does not, or was not.
    """
    assert recipe.streams is not None
    if len(recipe.streams) > 1 and not traits.has_streams:
        raise RecipeError("streams: this model is for rows of one stream; use model joint")
    is_trained = isinstance(objective, MaskedTokens) and objective.streams.can_drop
    if recipe.guidance.scale != 1 and not is_trained:
        raise RecipeError(
            f"guidance.scale: {recipe.guidance.scale} needs rows in which a stream was left out; set "
            "objective.stream_dropout, or use 1"
        )


def row_tokenizer(
    recipe: Recipe, facts: DataFacts, images: ImageTokenizer, captions: TextTokenizer | None
) -> RowTokenizer:
    """The tokenizer of a recipe's rows.

    Args:
        recipe: with `streams`.
        facts: sizes of the data.
        images: of pictures.
        captions: of captions; None in rows without.

    Raises:
        UserError: sizes that the streams cannot have.
    """
    assert recipe.streams is not None
    parts: list[StreamTokenizer] = []
    for name, settings in recipe.streams.items():
        if name == "image":
            parts.append(PictureStream(images))
        elif name == "label":
            parts.append(LabelStream(facts.n_classes))
        elif name == "map":
            assert facts.image_shape is not None
            parts.append(MapStream(facts.n_map_classes, facts.image_shape[1:], settings.cell or 1, settings.patch or 1))
        else:
            assert captions is not None
            assert settings.length is not None
            parts.append(CaptionStream(captions, settings.length))
    return RowTokenizer(parts)
