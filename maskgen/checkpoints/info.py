"""What a checkpoint says of itself, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskgen.checkpoints.locate import MODEL, TOKENIZER
from maskgen.checkpoints.manifest import CheckpointError, verify
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import UserError
from maskgen.core.terminal import printable
from maskgen.recipes.build import DataFacts
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself: `info` is its checkpoint.json."""

    path: Path
    recipe: Recipe
    info: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.info["step"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(printable(str(name)) for name in self.info["classes"])

    @property
    def length(self) -> int:
        """Tokens in a training row of a text generator."""
        return int(self.info["length"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.info["image_shape"]
        return channels, height, width

    @property
    def caption_shape(self) -> tuple[int, int]:
        """(S, C) of an embedded caption."""
        length, width = self.info["caption_shape"]
        return length, width

    @property
    def facts(self) -> DataFacts:
        """Facts of the data it was trained on."""
        if self.recipe.kind == "text":
            return DataFacts(length=self.length, vocab_size=int(self.info.get("vocab_size", 0)))
        channels, height, width = self.info.get("built_for", self.image_shape)
        caption_shape = None if self.recipe.captions is None else self.caption_shape
        grid = tuple(self.info["built_grid"]) if "built_grid" in self.info else None
        facts = DataFacts(len(self.classes), self.image_shape, (channels, height, width), grid, 0, caption_shape)
        return replace(facts, target_width=int(self.info.get("target_width", 0)))

    def tensors(self, name: str = MODEL) -> dict[str, Tensor]:
        """The tensors of one of its files, checked against the manifest.

        Raises:
            CheckpointError: the file is missing, truncated or altered.
        """
        return dict(self.stored(name))

    def stored(self, name: str = MODEL) -> StoredTensors:
        """As `tensors`, each mapped from the disk when it is looked up."""
        path = self.path / name
        verify(path, self.info["files"].get(name))
        try:
            return StoredTensors.of(path)
        except UserError as error:
            raise CheckpointError(str(error)) from None

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
