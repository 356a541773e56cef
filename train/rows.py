"""Training on rows of several streams: data, tokenizer and batches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import TOKENIZER
from maskgen.core.predictions import Batch
from maskgen.core.rng import Rng
from maskgen.data.base import ImageSource, ImageSplit
from maskgen.data.loader import Rows
from maskgen.data.rows import StreamRows, encoded_part
from maskgen.recipes.build import DataFacts
from maskgen.recipes.rows import row_tokenizer
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import RowTokenizer
from maskgen.tokenizers.text.tokenizer import TextTokenizer

from .batches import ToBatch


def stream_rows(
    recipe: Recipe, source: ImageSource, images: ImageTokenizer, rows: tuple[Rows, Rows], directory: Path | None
) -> tuple[RowTokenizer, Rows, Rows]:
    """The tokenizer of a recipe's rows, and its training and held-out rows.

    Args:
        recipe: with `streams`.
        source: of the data.
        images: tokenizer of pictures.
        rows: their tokens, of training and held out.
        directory: of the run, where the tokenizer of captions is kept; None to keep it nowhere.
    """
    train = source.split("train")
    captions = _caption_tokenizer(recipe, train, directory) if recipe.has_text else None
    tokenizer = row_tokenizer(recipe, DataFacts.of(source), images, captions)
    held_out = source.split("test", may_be_empty=not recipe.train.validation_rows)
    return tokenizer, _joined(tokenizer, train, rows[0]), _joined(tokenizer, held_out, rows[1])


def rows_to_batch(device: torch.device) -> ToBatch:
    """From rows (B, L) to a Batch on the device."""

    def convert(x_0: Tensor, labels: Tensor, rng: Rng) -> Batch:  # noqa: ARG001
        return Batch(x_0.to(device))

    return convert


def _joined(tokenizer: RowTokenizer, split: ImageSplit, pictures: Rows) -> Rows:
    if not len(split):
        return pictures
    others = {
        name: encoded_part(split, name, part.encode) for name, part in tokenizer.streams.items() if name != "image"
    }
    return StreamRows(tokenizer.layout, pictures, others)


def _caption_tokenizer(recipe: Recipe, split: ImageSplit, directory: Path | None) -> TextTokenizer:
    """The run's own tokenizer, or one made from the training captions and kept in the run directory."""
    file = None if directory is None else directory / TOKENIZER
    if file is not None and file.is_file():
        return TextTokenizer.load(file)
    captions = split.part("caption", range(len(split)))
    assert not isinstance(captions, Tensor)
    tokenizer = recipe.build_caption_tokenizer(captions)
    if file is not None:
        tokenizer.save(file)
    return tokenizer
