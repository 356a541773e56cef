"""`maskgen compress` and `maskgen decompress`."""

from __future__ import annotations

import click

from maskgen.cli.names import CHECKPOINT
from maskgen.cli.options import program, say

BATCH_SIZE = click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Rows computed together."
)


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.argument("input", metavar="INPUT")
@click.option("--output", required=True, metavar="FILE.mgc", help="File to write.")
@click.option(
    "--order",
    type=click.Choice(["halton", "random", "entropy"]),
    help="Order of the tokens. Default: halton for images, random for text. Networks that generate in blocks have "
    "their own.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Groups of tokens coded together: more take longer and need fewer bits. Default: one a token.",
)
@BATCH_SIZE
def compress(checkpoint: str, input: str, output: str, **options: str | int | None) -> None:
    """Compress INPUT with the probabilities of CHECKPOINT, without loss of its tokens.

    INPUT is a text file in UTF-8; or an image, a folder, a .zip or an .npz of images, or DATASET:SPLIT. Pixel tokens
    keep images exactly; those of a trained tokenizer lose what its decoder cannot restore.
    """
    say(program("sample.codec").compress(checkpoint, input, output, **options))


@click.command()
@click.argument("file", metavar="FILE.mgc")
@click.option("--output", required=True, metavar="PATH", help="Text file, image, or folder for several images.")
@click.option(
    "--checkpoint", type=CHECKPOINT, metavar="CHECKPOINT", help="Where the checkpoint is now. Default: as compressed."
)
@click.option(
    "--groups",
    type=click.IntRange(0),
    metavar="N",
    help="Decode the first N groups of tokens only and sample the rest from the model.",
)
@BATCH_SIZE
def decompress(file: str, output: str, **options: str | int | None) -> None:
    """Restore what `maskgen compress` wrote to FILE.mgc."""
    say(program("sample.codec").decompress(file, output, **options))
