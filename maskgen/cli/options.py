"""Options that commands share, and programs by name."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import click
from click.shell_completion import CompletionItem

from maskgen.cli.names import SAMPLER
from maskgen.cli.tables import table
from maskgen.core import catalogue
from maskgen.core.errors import UserError, unknown
from maskgen.core.terminal import printable
from maskgen.core.yaml_reader import YamlError, read_yaml

Command = TypeVar("Command", bound=Callable[..., object])


class Finite(click.FloatRange):
    """A number in a range, neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no finite number", param, ctx)


class Device(click.ParamType):  # type: ignore[type-arg]  # click before 8.2 has no type arguments
    """A device as the library takes it: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; whether it is there is seen later."""

    name = "auto|cpu|cuda|cuda:N|mps"
    names: ClassVar = ["auto", "cpu", "cuda", "mps"]

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if value in self.names or re.fullmatch(r"cuda:\d{1,4}", str(value)):
            return value
        return self.fail(unknown("device", str(value), [*self.names, "cuda:N"]), param, ctx)

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]


NUMBER_FORMAT = click.Choice(["fp32", "bf16", "fp16"])
"""Of weights, as `--dtype` takes it."""

DEVICE = click.option("--device", type=Device(), default="auto", show_default=True, help="Where to compute.")


def program(name: str) -> Any:
    """A module of a program, by name: the library has no import of one."""
    return importlib.import_module(f"maskgen.{name}")


def say(text: object) -> None:
    """Print a result; control characters that a file may hold are escaped."""
    click.echo(printable(str(text), keep="\n\t"))


def sampling(command: Callable[..., object]) -> Callable[..., object]:
    """The options that choose a sampler."""
    options = [
        click.option("--sampler", type=SAMPLER, metavar="NAME", help="See `maskgen samplers`. Default: the recipe's."),
        click.option("--steps", type=click.IntRange(1), help="Number of decoding steps."),
        click.option("--guidance", type=Finite(0), metavar="W", help="Guidance scale; 1 turns it off."),
        click.option(
            "--guidance-interval",
            metavar="LOW,HIGH",
            callback=listed(finite),
            help="Times t in [0, 1] at which guidance is on.",
        ),
        click.option("--temperature", type=Finite(0), metavar="T", help="Temperature of token sampling."),
        click.argument("arguments", nargs=-1, metavar="[key=value ...]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def choices(arguments: tuple[str, ...], **options: object) -> dict[str, object]:
    """The options that were given, and the sampler's own arguments as key=value.

    Raises:
        UserError: an argument that is not key=value, has an option of its own, or is not YAML.
    """
    chosen = {key: value for key, value in options.items() if value is not None}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator:
            raise UserError(f"a sampler argument is key=value, got {argument!r}")
        key = key.replace("-", "_")
        command = click.get_current_context().command
        if key in {option.name for option in command.params}:
            raise UserError(f"{key} is an option of its own: --{key.replace('_', '-')} {text}")
        try:
            chosen[key] = read_yaml(text)
        except YamlError as error:
            raise UserError(f"{key}: the value {text!r} is not YAML: {error}") from None
    return chosen


def listed(kind: Callable[[str], object]) -> Callable[[object, click.Parameter, str | None], tuple[object, ...] | None]:
    """A callback for values given as a,b,c."""

    def split(_: object, option: click.Parameter, text: str | None) -> tuple[object, ...] | None:
        if text is None:
            return None
        try:
            return tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list such as {option.metavar}") from None

    return split


def finite(text: str) -> float:
    """The number in a text.

    Raises:
        ValueError: it is none, NaN or infinite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def listing(title: str, *homes: str) -> Callable[[Command], Command]:
    """An option that prints the entries of registries and exits."""

    def show(context: click.Context, _: object, is_wanted: bool) -> None:
        if is_wanted and not context.resilient_parsing:
            entries = [entry for home in homes for entry in catalogue.entries(home).values()]
            rows = [(f"{one.name}{':MODEL' * ('model' in one.parameters)}", one.summary) for one in entries]
            say(table(sorted(rows)))
            context.exit()

    return click.option(
        f"--{title}",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help=f"{title.replace('-', ' ').capitalize()} and exit.",
    )
