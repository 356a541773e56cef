"""Converters of published checkpoints, by layout: a registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from maskgen.checkpoints.convert.published import Published
from maskgen.core.registry import Registry
from maskgen.core.streams import Stream, TokenLayout
from maskgen.core.yaml_reader import read_yaml
from maskgen.recipes.build import DataFacts
from maskgen.recipes.load import load_recipe
from maskgen.tokenizers.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Target:
    """What a published checkpoint becomes.

    Attributes:
        recipe: all keys of its recipe, see `shipped`; its summary is replaced. Without `model` it is an image
            tokenizer's.
        facts: sizes of the data it was trained on.
        layout: rows of a generator's tokens; None for a tokenizer or a classifier.
        classes: names of the classes; their numbers if empty.
    """

    recipe: Mapping[str, object]
    facts: DataFacts
    layout: TokenLayout | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiffusersFolder:
    """A published autoencoder that becomes a folder of diffusers, which `source` of a recipe's tokenizer names.

    Attributes:
        kind: name of the class in diffusers.
        config: its configuration.
    """

    kind: str
    config: Mapping[str, object]


class Converter(ABC):
    """A published layout of weights -> a recipe and the weights of its network.

    All three methods are first called with tensors on the meta device, which have names, shapes and types only; a check
    of values is left out for these (`value.is_meta`). `maskgen convert --list` shows the first line of the docstring
    and the texts below, which are read from the source: write them out.

    Attributes:
        parameters: of the published sizes, ``"33 M (S/2) to 675 M (XL/2)"``.
        licence: of the published weights.
        page: of the method: an address.
        needs: what sampling needs beside the weights, ``"autoencoder sd-vae-ft-ema"``; empty if nothing.
    """

    parameters: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    page: ClassVar[str] = ""
    needs: ClassVar[str] = ""

    @abstractmethod
    def recognises(self, found: Published) -> bool:
        """Whether names and shapes of the tensors, and the configuration if there is one, are those of this layout."""

    @abstractmethod
    def target(self, found: Published) -> Target | DiffusersFolder:
        """The recipe, chosen by the sizes found, and the sizes of its data; a folder for an autoencoder of diffusers.

        Raises:
            UserError: a size that was never published, or that the layout does not determine.
        """

    @abstractmethod
    def tensors(self, found: Published) -> dict[str, Tensor]:
        """The weights under the names and in the layouts of this package.

        Raises:
            UserError: a tensor that the layout does not have.
        """

    def text_tokenizer(self, found: Published) -> TextTokenizer | None:  # noqa: ARG002
        """The text tokenizer in a published folder; None where --tokenizer has to name one."""
        return None


CONVERTERS: Registry[Converter] = Registry("layout", Converter, home="maskgen.checkpoints.convert:CONVERTERS")


def shipped(name: str, **parts: object) -> dict[str, object]:
    """All keys of a shipped recipe, with some parts (`model=...`, `tokenizer=...`) replaced as a whole."""
    tree: dict[str, object] = read_yaml(load_recipe(name).dump())
    return tree | parts


def image_target(
    recipe: Mapping[str, object],
    grid: tuple[int, int],
    *,
    pixels: int,
    n_classes: int,
    vocab_size: int = 0,
    token_width: int = 0,
    caption_shape: tuple[int, int] | None = None,
) -> Target:
    """The target of a generator of colour images.

    Args:
        recipe: see `Target`; the size of its data becomes that of the images.
        grid: (h, w) of the tokens.
        pixels: side of a token in pixels.
        n_classes: without the one that stands for no class.
        vocab_size: of discrete tokens, else 0.
        token_width: numbers in a continuous token, else 0.
        caption_shape: (S, C) of an embedded caption; None without.
    """
    shape = (3, grid[0] * pixels, grid[1] * pixels)
    layout = TokenLayout.of(Stream("image", "image", vocab_size, grid, token_width))
    data = recipe.get("data")
    if isinstance(data, dict) and "size" in data and grid[0] == grid[1]:
        recipe = {**recipe, "data": data | {"size": shape[1]}}
    return Target(recipe, DataFacts(n_classes, shape, caption_shape=caption_shape), layout)
