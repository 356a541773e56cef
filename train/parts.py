"""What a recipe is built into: data, networks and objective of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from maskgen.checkpoints.checkpoint import TOKENIZER, load_tokenizer
from maskgen.checkpoints.target_source import load_target_source
from maskgen.core.errors import UserError
from maskgen.core.traits import traits_of
from maskgen.data.base import ImageSource, ImageSplit, SplitName, TextSource
from maskgen.data.cache import token_data
from maskgen.data.image.captions import CaptionedRows, CaptionTable, embedded
from maskgen.data.image.latents import latent_data
from maskgen.data.image.views import ViewedSplit, ViewedTokens
from maskgen.data.loader import Rows
from maskgen.data.text.answers import AnswerData, text_rows
from maskgen.data.text.rows import TextData
from maskgen.models import change_grid
from maskgen.models.base import HasArchitecture
from maskgen.objectives import Objective
from maskgen.recipes.build import AnyTokenizer, DataFacts, System, build_system, possible_sizes
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.image.latent import KLTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .batches import ToBatch, image_to_batch, text_to_batch
from .rows import rows_to_batch, stream_rows
from .some_rows import SomeRows

SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass(frozen=True)
class Parts:
    """Data and system of a training run; `held_out` is what it is validated on.

    Attributes:
        source: of the data, at the resolution of the present phase.
        system: network, tokenizer and objective; its network was built for `system.facts.built_for`.
        train, held_out: rows; with captions they are `CaptionedRows`.
        to_batch: from rows to a batch on the device.
        captions: of all images; None without.
    """

    source: ImageSource | TextSource
    system: System
    train: Rows
    held_out: Rows
    to_batch: ToBatch
    captions: CaptionTable | None = None

    @property
    def tokenizer(self) -> AnyTokenizer | None:
        """The tokenizer of a generator."""
        return self.system.tokenizer

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""
        return self.system.network

    @property
    def objective(self) -> Objective:
        """The training loss."""
        return self.system.objective

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that can be sampled: those of the data, none for a network with `condition: none`."""
        if not isinstance(self.source, ImageSource):
            return ()
        traits, is_stream = traits_of(self.module), "label" in (self.system.recipe.streams or ())
        if traits.tokens and not traits.takes_classes and not is_stream:
            return ()
        return self.source.classes

    def facts(self) -> dict[str, object]:
        """Facts of the data that a checkpoint stores."""
        if isinstance(self.source, ImageSource):
            shapes: dict[str, object] = {"image_shape": list(self.source.image_shape)}
            built_for = self.system.facts.built_for
            if built_for is not None and built_for != self.source.image_shape:
                shapes["built_for"] = list(built_for)
            if self.system.facts.built_grid is not None:
                shapes["built_grid"] = list(self.system.facts.built_grid)
            if self.captions is not None:
                shapes["caption_shape"] = [self.captions.length, self.captions.width]
                shapes["caption_encoder"] = self.captions.encoder
            if self.system.recipe.streams is not None:
                shapes["map_classes"] = list(self.source.map_classes)
            if self.system.facts.target_width:
                shapes["target_width"] = self.system.facts.target_width
            return {"classes": list(self.classes), **shapes, "data": self.data}
        built = {"architecture": self.module.architecture()} if isinstance(self.module, HasArchitecture) else {}
        return {"classes": [], "length": self.source.length, "data": self.data, **built}

    @cached_property
    def data(self) -> dict[str, Any]:
        """Identity of the training rows: their number and fingerprint."""
        if isinstance(self.source, ImageSource):
            fingerprint = self.source.split("train").fingerprint()
        else:
            fingerprint = self.train.fingerprint if isinstance(self.train, TextData | AnswerData) else ""
        return {"rows": len(self.train), "fingerprint": fingerprint}


def build(
    recipe: Recipe,
    accelerator: Accelerator,
    directory: Path | None = None,
    known: DataFacts = DataFacts(),
) -> Parts:
    """Data, networks and objective of a recipe, on the accelerator's device.

    Args:
        recipe: of the run.
        accelerator: its device.
        directory: of the run, whose own tokenizer is taken if it has one.
        known: grid and architecture of a network that has been trained before.
    """
    if recipe.kind == "text":
        return _build_text(recipe, accelerator, directory, known)
    source = recipe.build_data()
    with accelerator.local_main_process_first():  # an index of streamed shards is made once
        train: Rows = source.split("train")
        test: Rows = needed_split(recipe, source, "test")
    if recipe.streams is not None:
        return _build_rows(recipe, source, accelerator, directory)
    tokenizer = captions = None
    if recipe.task == "generator":
        tokenizer, train, test = _tokens(recipe, source, accelerator, directory)
        if recipe.captions is not None:
            captions, train, test = _captions(recipe, source, train, test, accelerator)
    caption_shape = None if captions is None else (captions.length, captions.width)
    facts = replace(DataFacts.of(source, caption_shape), built_for=source.image_shape)
    if known.built_grid is not None and tokenizer is not None and known.built_grid != tokenizer.grid:
        facts = replace(facts, built_grid=known.built_grid)
    with accelerator.local_main_process_first():
        target_source = load_target_source(recipe)
    with possible_sizes():
        system = build_system(recipe, facts, tokenizer, source=target_source)
    _check_trainable(recipe, system, source)
    system.network.to(accelerator.device)
    to_batch = image_to_batch(recipe, tokenizer, source, accelerator.device, captions)
    return Parts(source, system, train, test, to_batch, captions)


def _build_rows(recipe: Recipe, source: ImageSource, accelerator: Accelerator, directory: Path | None) -> Parts:
    """Parts of a recipe whose rows hold several streams."""
    images, *rows = _tokens(recipe, source, accelerator, directory)
    with accelerator.local_main_process_first():
        tokenizer, train, test = stream_rows(recipe, source, images, (rows[0], rows[1]), directory)
    facts = replace(DataFacts.of(source), built_for=source.image_shape)
    with possible_sizes():
        system = build_system(recipe, facts, tokenizer)
    system.network.to(accelerator.device)
    return Parts(source, system, train, test, rows_to_batch(accelerator.device))


def _check_trainable(recipe: Recipe, system: System, source: ImageSource) -> None:
    """Check that there are parameters to train, and a null label where images have no label.

    Raises:
        UserError: there are not, or there is none.
    """
    if recipe.task == "tokenizer" and not any(p.requires_grad for p in system.network.parameters()):
        raise UserError(f"tokenizer {recipe.tokenizer} has nothing to train; choose one that learns")
    traits, train = traits_of(system.network), source.split("train")
    if recipe.task == "generator" and not traits.has_null_label and bool((train.labels < 0).any()):
        raise UserError("data: some images have no label, and the model has no null label (model.has_null_label)")


def at_resolution(parts: Parts, recipe: Recipe, resolution: int | None, accelerator: Accelerator) -> Parts:
    """The parts with data and tokens of another size (the recipe's for None), the network's grid changed to theirs.

    Raises:
        UserError: data or tokenizer that cannot be had at this size, or a network that cannot change its grid.
    """
    if not isinstance(parts.source, ImageSource):
        return parts
    sized = recipe.at(resolution)
    if sized.image_shape() == parts.source.image_shape:
        return parts
    source = sized.build_data()
    tokenizer, train, test = _tokens(sized, source, accelerator, None)
    change_grid(parts.module, tokenizer.grid)
    if isinstance(parts.train, CaptionedRows) and isinstance(parts.held_out, CaptionedRows):
        train, test = CaptionedRows(train, parts.train.numbers), CaptionedRows(test, parts.held_out.numbers)
    to_batch = image_to_batch(sized, tokenizer, source, accelerator.device, parts.captions)
    facts = replace(parts.system.facts, image_shape=source.image_shape)
    system = System(sized, facts, parts.module, tokenizer, tokenizer.layout)
    return replace(parts, source=source, system=system, to_batch=to_batch, train=train, held_out=test)


def check_grids(parts: Parts, recipe: Recipe) -> None:
    """See that the network can work at every resolution of the run, before the first step and not in the middle.

    Raises:
        UserError: it cannot.
    """
    resolutions = {phase.resolution for phase in recipe.train.phases} - {None}
    if resolutions and isinstance(parts.tokenizer, ImageTokenizer):
        for resolution in sorted(filter(None, resolutions)):
            change_grid(parts.module, load_tokenizer(recipe, recipe.at(resolution).image_shape()).grid)
        change_grid(parts.module, parts.tokenizer.grid)


def _tokens(
    recipe: Recipe, source: ImageSource, accelerator: Accelerator, directory: Path | None
) -> tuple[ImageTokenizer, Rows, Rows]:
    """The tokenizer of an image generator, and what it is trained on: tokens, moments of latents, or images."""
    tokenizer = load_tokenizer(recipe, source.image_shape, directory).to(accelerator.device)
    options: dict[str, Any] = {"device": accelerator.device, "progress": accelerator.is_main_process}
    train: Rows
    test: Rows
    with accelerator.local_main_process_first():
        if isinstance(tokenizer, KLTokenizer):
            options["has_flips"] = recipe.train.flip
            splits = (needed_split(recipe, source, name) for name in SPLITS)
            train, test = (latent_data(split, tokenizer, **options) if len(split) else split for split in splits)
        elif not tokenizer.has_discrete_tokens:  # it takes no time
            train, test = (needed_split(recipe, source, name) for name in SPLITS)
        else:
            train = tokens = token_data(to_encode(recipe, source, "train"), tokenizer, **options)
            split = to_encode(recipe, source, "test")
            test = token_data(split, tokenizer, **options) if len(split) else split
            if recipe.train.views is not None:
                train = ViewedTokens(tokens, recipe.train.views)
    return tokenizer, train, test


def needed_split(recipe: Recipe, source: ImageSource, name: SplitName) -> ImageSplit:
    """The images of a split; held-out ones may be missing if no validation needs them."""
    return source.split(name, may_be_empty=name == "test" and not recipe.train.validation_rows)


def to_encode(recipe: Recipe, source: ImageSource, name: SplitName) -> ImageSplit:
    """The images of a split whose tokens are stored: those of training with their views."""
    split, views = needed_split(recipe, source, name), recipe.train.views
    return split if views is None or name != "train" else ViewedSplit(split, views)


def _captions(
    recipe: Recipe, source: ImageSource, train: Rows, test: Rows, accelerator: Accelerator
) -> tuple[CaptionTable, Rows, Rows]:
    """Embedded captions, and both sets of rows with the numbers of theirs."""
    assert recipe.captions is not None
    splits = [needed_split(recipe, source, name) for name in SPLITS]
    with accelerator.local_main_process_first():
        table, (of_train, of_test) = embedded(
            splits, recipe.captions, device=accelerator.device, progress=accelerator.is_main_process
        )
    return table, CaptionedRows(train, of_train), CaptionedRows(test, of_test)


def _build_text(recipe: Recipe, accelerator: Accelerator, directory: Path | None, known: DataFacts) -> Parts:
    source, is_main = recipe.build_text(), accelerator.is_main_process
    with accelerator.local_main_process_first():
        tokenizer = _text_tokenizer(recipe, source, directory, is_kept=is_main)
        train: Rows = text_rows(source, "train", tokenizer, progress=is_main)
        held_out: Rows = SomeRows(train, range(0))
        if recipe.train.validation_rows:
            held_out = text_rows(source, "validation", tokenizer, progress=is_main)
        if any(source.documents("test")):  # a character the tokenizer does not know is found before training
            text_rows(source, "test", tokenizer, progress=is_main)
    eos = tokenizer.eos if recipe.train.document_attention else None
    if recipe.train.document_attention and eos is None:
        raise UserError("train.document_attention: the tokenizer has no token that ends a document; set tokenizer.eos")
    with possible_sizes():
        system = build_system(recipe, replace(DataFacts.of(source), architecture=known.architecture), tokenizer)
    system.network.to(accelerator.device)
    to_batch = text_to_batch(accelerator.device, eos, has_answers=source.has_answers)
    return Parts(source, system, train, held_out, to_batch)


def _text_tokenizer(recipe: Recipe, source: TextSource, directory: Path | None, *, is_kept: bool) -> TextTokenizer:
    """The run's own tokenizer, or one made from the training documents and kept in the run directory."""
    file = None if directory is None else directory / TOKENIZER
    if file is not None and file.is_file():
        return TextTokenizer.load(file)
    tokenizer = recipe.build_text_tokenizer(source)
    if file is not None and is_kept:
        tokenizer.save(file)
    return tokenizer
