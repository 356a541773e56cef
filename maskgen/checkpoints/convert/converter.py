"""Converters of published weights, by layout: a registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from maskgen.core.registry import Registry


class Converter(ABC):
    """A published layout of weights -> a network of this package and the recipe it is trained by.

    Attributes:
        positions: name of a tensor (1, L, D) of the layout, from which the number of tokens is read.
        n_null: rows of `labels.weight` that stand for no class.
        pixels: side of a token in pixels.
        token_width: numbers in a token that the recipe's tokenizer has.
    """

    positions: ClassVar[str] = "pos_embed"
    n_null: ClassVar[int] = 1
    pixels: ClassVar[int] = 16
    token_width: ClassVar[int] = 16

    @abstractmethod
    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether names and shapes of a state dict, without prefixes, are those of this layout."""

    @abstractmethod
    def tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the names and in the layouts of this package.

        Raises:
            UserError: a tensor that the layout does not have.
        """

    @abstractmethod
    def spec(self, state: Mapping[str, Tensor]) -> dict[str, object]:
        """The keys of the recipe's `model` that the weights fit.

        Raises:
            UserError: a size that was never published.
        """

    @abstractmethod
    def recipe(self, spec: Mapping[str, object]) -> str:
        """The shipped recipe of that size of network, the rest of which is kept."""


CONVERTERS: Registry[Converter] = Registry("layout", Converter, home="maskgen.checkpoints.convert:CONVERTERS")
