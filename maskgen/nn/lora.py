"""LoRA: low-rank changes of linear layers, trained in place of their weights (arXiv 2106.09685), by peft."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from maskgen.core.errors import UserError, closest

if TYPE_CHECKING:
    from peft import LoraModel


class LoraSettings(BaseModel):
    """Recipe key `model.lora`.

    Attributes:
        rank: r of the change B A of a weight, A (r, n_in) and B (n_out, r), B = 0 at the start.
        alpha: the change counts alpha / rank; null for `rank`, so that it counts 1.
        targets: patterns of the names of linear layers; empty for all that are in a list of blocks.
        trained: patterns of further parameters, which are trained whole.
        dropout: of the input of A.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(ge=1, le=2**16)
    alpha: int | None = Field(None, ge=1, le=2**24)
    targets: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    dropout: float = Field(0.0, ge=0, lt=1)


def matching(names: list[str], patterns: tuple[str, ...], key: str) -> set[str]:
    """The names that shell patterns match.

    Raises:
        UserError: a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(name, pattern)}
        if not fits:
            parts = list(dict.fromkeys(f"{name.split('.')[0]}{'.*' * ('.' in name)}" for name in names))
            hint = closest(pattern, [*parts, *names]) + f"its parts are {', '.join(parts)}"
            raise UserError(f"{key}: {pattern!r} matches no name of the network; {hint}")
        found |= fits
    return found


def add_lora(network: nn.Module, settings: LoraSettings) -> LoraModel:
    """Add low-rank changes to linear layers of a network, in place, and freeze all other parameters.

    A changed layer's weight is called `NAME.base_layer.weight`, the change `NAME.lora_A.default.weight` and
    `NAME.lora_B.default.weight`. `merge_and_unload()` of the result adds the changes to the weights.

    Raises:
        UserError: peft is not installed, or a pattern matches no linear layer.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UserError("model.lora needs peft: pip install 'maskgen[lora]'") from None
    names = linear_layers(network, settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        lora_dropout=settings.dropout,
        fan_in_fan_out=all(_is_conv1d(network.get_submodule(name)) for name in names),
        target_modules="|".join(re.escape(name) for name in names),
    )
    changed = LoraModel(network, config, "default")
    trained = matching([name for name, _ in network.named_parameters()], settings.trained, "model.lora.trained")
    for name in trained:
        network.get_parameter(name).requires_grad_(True)
    return changed


def linear_layers(network: nn.Module, targets: tuple[str, ...] = ()) -> list[str]:
    """Names of the linear layers that patterns match; without patterns those in lists of blocks.

    Raises:
        UserError: none.
    """
    lists = tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, nn.ModuleList))
    layers = [name for name, part in network.named_modules() if isinstance(part, nn.Linear) or _is_conv1d(part)]
    if targets:
        return sorted(matching(layers, targets, "model.lora.targets"))
    found = [name for name in layers if name.startswith(lists)] if lists else []
    if not found:
        raise UserError(
            f"model.lora: {type(network).__name__} has no linear layer in a list of blocks; set model.lora.targets"
        )
    return found


def _is_conv1d(part: nn.Module) -> bool:
    """Whether a part is GPT-2's linear layer, whose weight is transposed."""
    return type(part).__name__ == "Conv1D"
