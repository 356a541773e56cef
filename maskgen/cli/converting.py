"""`maskgen convert` and `maskgen export`."""

from __future__ import annotations

import click

from maskgen.cli.names import CHECKPOINT, CONVERTERS, EXPORTERS, Name, registered
from maskgen.cli.options import listing, program, say
from maskgen.cli.tables import table
from maskgen.core import catalogue


@click.command()
@click.argument("source", nargs=-1, metavar="FILE")
@click.option(
    "--layout",
    type=Name("layout", registered(CONVERTERS)),
    metavar="NAME",
    help="A name from --list. Default: recognised.",
)
@click.option("--output", metavar="DIR", help="Directory of the new checkpoint.")
@click.option(
    "--weights", type=click.Choice(["ema", "model"]), help="Which weights to take from a file that holds both."
)
@click.option("--list", "is_list", is_flag=True, help="List the layouts that can be converted.")
def convert(
    source: tuple[str, ...], layout: str | None, output: str | None, weights: str | None, is_list: bool
) -> None:
    """Convert FILE, a published checkpoint (.pt, .pth or .safetensors), into a maskgen checkpoint.

    The layout is recognised from names and shapes of the tensors. The file is read as tensors and plain settings; code
    in it never runs.
    """
    if is_list:
        say(table([(entry.name, entry.summary) for entry in catalogue.entries(CONVERTERS).values()]))
        return
    *old, file = source or (None,)
    if file is None or output is None or len(old) > 1:
        raise click.UsageError("give one FILE and --output DIR, or --list")
    if old:
        layout = layout or old[0]
        click.echo(f"note: `convert {old[0]} FILE` is now `convert FILE --layout {old[0]}`", err=True)
    say(program("checkpoints.convert.conversion").run(file, output, layout, weights))


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.argument("directory")
@click.option(
    "--format", "format_", type=Name("format", registered(EXPORTERS)), default="maskgen", show_default=True,
    metavar="NAME", help="What to write, a name from --list-formats.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Type of the weights."
)
@click.option("--summary", metavar="TEXT", help="One line for the model card.")
@listing("list-formats", EXPORTERS)
@click.option(
    "--report", metavar="FILE.json", help="Scores for the model card, written by `maskgen evaluate --output`."
)
def export(checkpoint: str, directory: str, format_: str, **options: str | None) -> None:
    """Copy CHECKPOINT to DIRECTORY without its training state, with a model card."""
    program("checkpoints.export").run(checkpoint, directory, format_, **options)
    say(directory)
