"""The registry of networks, one a file, by the name a recipe calls them."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from maskgen.core.errors import UserError
from maskgen.core.registry import Registry
from maskgen.nn.lora import LoraSettings

MODELS: Registry[nn.Module] = Registry(
    "model",
    derived=(
        *("vocab_size", "token_width", "grid", "n_classes", "image_shape", "caption_width", "architecture"),
        *("target_width", "layout"),
    ),
    home="maskgen.models:MODELS",
    shared={"lora": LoraSettings},
)


@runtime_checkable
class HasArchitecture(Protocol):
    """A network whose configuration is not in its recipe, so that checkpoints store it."""

    def architecture(self) -> dict[str, object]:
        """What it is built from in place of its source."""


@runtime_checkable
class FollowsProgress(Protocol):
    """A network that depends on how far its training is."""

    def follow(self, progress: float) -> None:
        """Take the share of the training steps that are done."""


def change_grid(network: nn.Module, grid: tuple[int, ...]) -> None:
    """Let a network work on another grid of tokens: positions are interpolated, parameters stay what they are.

    Raises:
        UserError: it cannot.
    """
    before = [id(parameter) for parameter in network.parameters()]
    try:
        cast(Any, network).set_grid(grid)
    except (AttributeError, ValueError) as error:
        raise UserError(f"{type(network).__name__} cannot work on a grid {grid}: {error}") from None
    if [id(parameter) for parameter in network.parameters()] != before:
        raise UserError(f"{type(network).__name__} has other parameters on a grid {grid}: give its positions a formula")
