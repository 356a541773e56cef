"""What a checkpoint says of itself. It may come from anybody: types and limits are checked when values are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskgen.checkpoints.locate import MODEL, TOKENIZER
from maskgen.checkpoints.manifest import CheckpointError, verify
from maskgen.core.terminal import printable
from maskgen.recipes.build import DataFacts
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers.text.tokenizer import TextTokenizer

MOST_CLASSES = 10**6
MOST_SIDE = 2**27
"""Largest size that is believed, and the largest number of values of an image."""
MOST_STEPS = 2**62


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself: `info` is its checkpoint.json."""

    path: Path
    recipe: Recipe
    info: Mapping[str, Any]

    @property
    def step(self) -> int:
        return _size(self.info["step"], "step", least=0, most=MOST_STEPS)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return _class_names(self.info["classes"])

    @property
    def length(self) -> int:
        """Tokens in a training row of a text generator."""
        return _size(self.info["length"], "length")

    @property
    def vocab_size(self) -> int:
        """Ids of a text generator's embedding; 0 if they are those of its tokenizer."""
        return _size(self.info.get("vocab_size", 0), "vocab_size", least=0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return _image_shape(self.info["image_shape"], "image_shape")

    @property
    def built_for(self) -> tuple[int, int, int]:
        """(C, H, W) that the network was built with, before phases of another resolution."""
        return _image_shape(self.info.get("built_for", self.info["image_shape"]), "built_for")

    @property
    def caption_shape(self) -> tuple[int, int]:
        """(S, C) of an embedded caption."""
        length, width = (_size(side, "caption_shape") for side in self.info["caption_shape"])
        return length, width

    @property
    def facts(self) -> DataFacts:
        """Facts of the data it was trained on."""
        if self.recipe.kind == "text":
            return DataFacts(length=self.length, vocab_size=self.vocab_size)
        caption_shape = None if self.recipe.captions is None else self.caption_shape
        grid = _grid(self.info["built_grid"], "built_grid") if "built_grid" in self.info else None
        return DataFacts(len(self.classes), self.image_shape, self.built_for, grid, 0, caption_shape)

    def tensors(self, name: str = MODEL) -> dict[str, Tensor]:
        """The tensors of one of its files, checked against the manifest.

        Raises:
            CheckpointError: the file is missing, truncated or altered.
        """
        path = self.path / name
        verify(path, self.info["files"].get(name))
        try:
            loaded: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return loaded

    def verify(self) -> None:
        """Hold every file against the manifest.

        Raises:
            CheckpointError: one is missing, truncated or altered.
        """
        for name, expected in self.info["files"].items():
            verify(self.path / name, expected)

    def text_tokenizer(self) -> TextTokenizer:
        """A text generator's tokenizer, checked as `tensors` are."""
        verify(self.path / TOKENIZER, self.info["files"].get(TOKENIZER))
        return TextTokenizer.load(self.path / TOKENIZER)


def _size(value: object, name: str, least: int = 1, most: int = MOST_SIDE) -> int:
    """A whole number within limits.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}, got {_short(value)}")
    return value


def _image_shape(value: object, name: str) -> tuple[int, int, int]:
    """(C, H, W) of images that can be held in memory.

    Raises:
        ValueError: it is no such shape.
    """
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{name} must be three whole numbers C, H, W, got {_short(value)}")
    channels, height, width = (_size(side, name) for side in value)
    if channels * height * width > MOST_SIDE:
        raise ValueError(f"{name} {channels} x {height} x {width} is more than the {MOST_SIDE:,} values of an image")
    return channels, height, width


def _grid(value: object, name: str) -> tuple[int, ...]:
    """Numbers of tokens along each axis.

    Raises:
        ValueError: they are no grid.
    """
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 8:
        raise ValueError(f"{name} must be a list of whole numbers, got {_short(value)}")
    return tuple(_size(side, name) for side in value)


def _class_names(value: object) -> tuple[str, ...]:
    """Names of classes, made printable.

    Raises:
        ValueError: no list of at most `MOST_CLASSES` names.
    """
    if not isinstance(value, list | tuple) or len(value) > MOST_CLASSES:
        count = f"{len(value):,} of them" if isinstance(value, list | tuple) else _short(value)
        raise ValueError(f"classes must be a list of at most {MOST_CLASSES:,} names, got {count}")
    return tuple(printable(str(name)) for name in value)


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value}" if not isinstance(value, int) or abs(value) < 1e30 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
