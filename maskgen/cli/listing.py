"""The commands that list what comes with the package; they need no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from maskgen.cli.names import SAMPLERS, Name, recipe_names, sampler_names
from maskgen.cli.options import program, say
from maskgen.cli.tables import table
from maskgen.core import catalogue
from maskgen.recipes import shipped

TITLES = ("Discrete and continuous tokens, by unmasking:", "Gaussian processes:")


@click.command()
@click.argument("name", type=Name("recipe", recipe_names), required=False)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
def recipes(name: str | None, overrides: tuple[str, ...]) -> None:
    """List the shipped recipes, or show one with all its keys and defaults."""
    if name is None:
        say(table([(one, shipped.recipe_summary(one)) for one in shipped.recipe_names()]))
        return
    say(program("recipes.load").load_recipe(name, overrides).dump().rstrip())


@click.command()
@click.argument("name", type=Name("sampler", sampler_names), required=False)
def samplers(name: str | None) -> None:
    """List the samplers and their arguments, or show one with its defaults."""
    if name is not None:
        entries = {
            entry.name.replace("_", "-"): entry for home in SAMPLERS for entry in catalogue.entries(home).values()
        }
        say(_described(entries[name]))
        return
    for title, home in zip(TITLES, SAMPLERS, strict=True):
        say(title)
        rows = [
            (entry.name, f"{entry.summary}\n  {' '.join(entry.parameters)}")
            for _, entry in sorted(catalogue.entries(home).items())
        ]
        say(table(rows))


def _described(entry: catalogue.Entry) -> str:
    arguments = [(f"  {key}", f"= {entry.defaults[key]}" if key in entry.defaults else "") for key in entry.parameters]
    return f"{entry.name}: {entry.doc}\n\narguments, given as key=value:\n{table(arguments)}"


@click.command()
@click.argument("name", type=Name("checkpoint", shipped.zoo_names), required=False)
def zoo(name: str | None) -> None:
    """List the checkpoints that come with the package, or show the model card of one."""
    if name is not None:
        say((shipped.zoo_path(name) / "README.md").read_text(encoding="utf-8").rstrip())
        return
    say(table([_zoo_row(one) for one in shipped.zoo_names()], ("name", "size", "parameters", "score", "makes")))


def _zoo_row(name: str) -> tuple[str, ...]:
    folder = shipped.zoo_path(name)
    info = json.loads((folder / shipped.INFO).read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    weights = shipped.parameters_in(folder / "model.safetensors")
    return name, f"{size / 1e6:.1f} MB", f"{weights / 1e6:.2f} M", _score(info), str(info.get("summary", ""))


def _score(info: Mapping[str, Any]) -> str:
    """The first score of the model card, else the validation loss or accuracy."""
    if info.get("scores"):
        first = info["scores"][0]
        return f"{first['name']} {float(first['value']):.3g}"
    validation = dict(info.get("validation", {}))
    for key in ("accuracy", "psnr", "loss"):
        if key in validation:
            return f"{key} {validation[key]:.3g}"
    return "-"
