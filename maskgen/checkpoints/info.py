"""A checkpoint as it is stored: its recipe, its description and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from maskgen.checkpoints import description
from maskgen.checkpoints.locate import MODEL, TOKENIZER
from maskgen.checkpoints.manifest import CheckpointError, verify
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import UserError
from maskgen.recipes.build import DataFacts
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers.text.specials import CONFIG
from maskgen.tokenizers.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint at `path`; `info` is the content of its checkpoint.json."""

    path: Path
    recipe: Recipe
    info: Mapping[str, Any]

    @property
    def step(self) -> int:
        return description.size(self.info["step"], "step", least=0, most=description.MOST_STEPS)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return description.class_names(self.info["classes"])

    @cached_property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the classes of segmentation maps; empty for rows without maps."""
        return description.class_names(self.info.get("map_classes", []))

    @property
    def length(self) -> int:
        """Tokens in a training row of a text generator."""
        return description.size(self.info["length"], "length")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return description.image_shape(self.info["image_shape"], "image_shape")

    @property
    def caption_shape(self) -> tuple[int, int]:
        """(S, C) of an embedded caption."""
        length, width = (description.size(side, "caption_shape") for side in self.info["caption_shape"])
        return length, width

    @property
    def facts(self) -> DataFacts:
        """Facts of the data it was trained on."""
        if self.recipe.kind == "text":
            architecture = description.keys_of(self.info.get("architecture"), "architecture")
            return DataFacts(length=self.length, architecture=architecture)
        built_for = description.image_shape(self.info.get("built_for", self.image_shape), "built_for")
        caption_shape = None if self.recipe.captions is None else self.caption_shape
        grid = description.token_grid(self.info["built_grid"], "built_grid") if "built_grid" in self.info else None
        target_width = description.size(self.info.get("target_width", 0), "target_width", least=-1)
        facts = DataFacts(len(self.classes), self.image_shape, built_for, grid, caption_shape=caption_shape)
        return replace(facts, target_width=target_width, n_map_classes=len(self.map_classes))

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
        for name in (TOKENIZER, *({CONFIG} & self.info["files"].keys())):
            verify(self.path / name, self.info["files"].get(name))
        return TextTokenizer.load(self.path / TOKENIZER)
