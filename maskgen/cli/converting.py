"""`maskgen convert` and `maskgen export`."""

from __future__ import annotations

import click

from maskgen.cli.names import CHECKPOINT, CONVERTERS, EXPORTERS, Name, registered
from maskgen.cli.options import NUMBER_FORMAT, listing, program, say
from maskgen.cli.tables import table
from maskgen.core import catalogue


@click.command()
@click.argument("source", nargs=-1, metavar="FILE_OR_FOLDER")
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
@click.option(
    "--tokenizer", metavar="FOLDER_OR_ID", help="Tokenizer or autoencoder: a folder, a checkpoint or a hub id."
)
@click.option("--dtype", type=NUMBER_FORMAT, help="Type of the weights. Default: the file's.")
@click.option("--image-size", type=click.IntRange(1), metavar="N", help="Side of the images, if the file lacks it.")
@click.option("--dry-run", is_flag=True, help="Check the file and say what the checkpoint would need; write nothing.")
@click.option("--list", "is_list", is_flag=True, help="List the layouts that can be converted.")
def convert(source: tuple[str, ...], output: str | None, dry_run: bool, is_list: bool, **options: object) -> None:
    """Convert FILE_OR_FOLDER, a published checkpoint, into a maskgen checkpoint.

    Reads .pt, .pth, .safetensors (in shards too), .npz and flax's msgpack, and folders of Hugging Face and diffusers.
    The layout is recognised from names and shapes of the tensors. Files are read as tensors and plain settings; code
    in them never runs.
    """
    if is_list:
        say(table([(entry.name, _described(entry)) for _, entry in sorted(catalogue.entries(CONVERTERS).items())]))
        return
    *old, file = source or (None,)
    if file is None or (output is None and not dry_run) or len(old) > 1:
        raise click.UsageError("give one FILE_OR_FOLDER and --output DIR (or --dry-run), or --list")
    if old:
        options["layout"] = options["layout"] or old[0]
        click.echo(f"note: `convert {old[0]} FILE` is now `convert FILE --layout {old[0]}`", err=True)
    conversion = program("checkpoints.convert.conversion")
    say(conversion.dry_run(file, **options) if dry_run else conversion.run(file, output, **options))


def _described(entry: catalogue.Entry) -> str:
    """A layout in two lines: what it is; parameters, licence, page, and what it needs."""
    titles = {"parameters": "parameters: ", "licence": "", "page": "", "needs": "needs "}
    facts = [f"{title}{entry.texts[name]}" for name, title in titles.items() if entry.texts.get(name)]
    return f"{entry.summary}\n  {'; '.join(facts)}"


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.argument("directory")
@click.option(
    "--format", "format_", type=Name("format", registered(EXPORTERS)), default="maskgen", show_default=True,
    metavar="NAME", help="What to write, a name from --list-formats.",
)  # fmt: skip
@click.option("--dtype", type=NUMBER_FORMAT, default="fp32", show_default=True, help="Type of the weights.")
@click.option("--summary", metavar="TEXT", help="One line for the model card.")
@listing("list-formats", EXPORTERS)
@click.option(
    "--report", metavar="FILE.json", help="Scores for the model card, written by `maskgen evaluate --output`."
)
def export(checkpoint: str, directory: str, format_: str, **options: str | None) -> None:
    """Copy CHECKPOINT to DIRECTORY without its training state, with a model card."""
    program("checkpoints.export").run(checkpoint, directory, format_, **options)
    say(directory)
