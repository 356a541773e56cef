"""Names that a command accepts: read from the source when they are needed, completed by the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from maskgen.core import catalogue
from maskgen.core.errors import unknown
from maskgen.recipes import shipped

SAMPLERS = ("maskgen.samplers.masked:SAMPLERS", "maskgen.samplers.gaussian:FIELD_SAMPLERS")
METRICS = "maskgen.sample:METRICS"
FEATURE_METRICS = "maskgen.evaluation.metrics:FEATURE_METRICS"
PROTOCOLS = "maskgen.evaluation.protocols:PROTOCOLS"
CONVERTERS = "maskgen.checkpoints.convert:CONVERTERS"
EXPORTERS = "maskgen.checkpoints:EXPORTERS"


class Name(click.ParamType):  # type: ignore[type-arg]  # click before 8.2 has no type arguments
    """A name out of a list.

    Args:
        kind: what it names, for messages and as the placeholder in help.
        names: all names, called when they are needed.
        is_open: whether other values are accepted: a path, a hub id. They are then checked by the program.
    """

    def __init__(self, kind: str, names: Callable[[], Iterable[str]], is_open: bool = False) -> None:
        self.name, self.names, self.is_open = kind, names, is_open

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        names = list(self.names())
        if self.is_open or value in names:
            return value
        spelled = str(value).replace("_", "-")
        if spelled in names:
            return spelled
        return self.fail(unknown(self.name, value, names), param, ctx)

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")] if self.is_open else found


def registered(*homes: str) -> Callable[[], list[str]]:
    """The names of registries, sorted."""
    return lambda: sorted(name for home in homes for name in catalogue.entries(home))


def sampler_names() -> list[str]:
    """As the command line writes them."""
    return [name.replace("_", "-") for name in registered(*SAMPLERS)()]


def protocol_names() -> list[str]:
    """Protocols; those of a library with `:MODEL` after their name."""
    entries = catalogue.entries(PROTOCOLS).values()
    return sorted(f"{entry.name}:MODEL" if "model" in entry.parameters else entry.name for entry in entries)


def recipe_names() -> list[str]:
    """With the folder, and without it where that is unique."""
    names = shipped.recipe_names()
    short = [name.rpartition("/")[2] for name in names]
    return [*names, *(name for name in short if short.count(name) == 1)]


CHECKPOINT = Name("checkpoint", shipped.zoo_names, is_open=True)
RECIPE = Name("recipe", recipe_names, is_open=True)
SAMPLER = Name("sampler", sampler_names, is_open=True)
