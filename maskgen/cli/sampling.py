"""`maskgen sample`."""

from __future__ import annotations

import click

from maskgen.cli.names import CHECKPOINT
from maskgen.cli.options import DEVICE, NUMBER_FORMAT, Finite, choices, program, sampling, say


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--num", type=click.IntRange(1), metavar="N", help="Number of samples. Default: 40 images, 4 texts.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME|ID|all",
    help="Class to generate; may be repeated, samples cycle through them. Default: all.",
)
@click.option("--length", type=click.IntRange(1), metavar="N", help="Tokens per text. Default: as in training.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Caption of an image (may be repeated, samples cycle through them), or the beginning of a text.",
)
@click.option("--chat", is_flag=True, help="Answer --prompt as a message, in the layout of the chat template.")
@click.option("--system", metavar="TEXT", help="System message of --chat.")
@click.option(
    "--new-tokens", type=click.IntRange(1), metavar="N", help="Tokens after the prompt, in place of --length."
)
@click.option(
    "--infill",
    metavar="TEXT",
    help='Text with gaps, one _ per token, or _{3,9}: as many as fit best: "In the ____ God created".',
)
@click.option("--picture", metavar="FILE", help="Image to complete; see --hole.")
@click.option(
    "--hole",
    multiple=True,
    metavar="WHERE",
    help="Part of --picture to generate: center (default), border, left, right, top, bottom, all, x0,y0,x1,y1, or a "
    "mask image; may be repeated.",
)
@click.option(
    "--strength",
    type=Finite(0, 1, min_open=True),
    metavar="SHARE",
    help="Share of the hole's tokens to generate, drawn at random: a variation of --picture. Default: 1.",
)
@click.option("--sketch", metavar="FILE", help="Drawing whose structure the images take (MaskGIT checkpoints).")
@click.option(
    "--structure",
    type=Finite(0, 1),
    metavar="SHARE",
    help="Weight of the sketch against the confidence of the network. Default: 0.9.",
)
@click.option("--edges", is_flag=True, help="--sketch is a photograph: its edges are the sketch.")
@click.option("--show-steps", is_flag=True, help="Print the first text after every decoding step.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sample i depends on seed + i only.")
@click.option(
    "--output",
    metavar="PATH",
    help="Images: a grid (.png, .jpg, .webp), an .npz, or a folder of PNGs. Text: .txt or .jsonl.",
)
@click.option(
    "--scale", type=click.IntRange(1, 64), metavar="N", help="Whole factor by which the images of a grid are enlarged."
)
@click.option("--animate", metavar="FILE", help="Also write a .gif or .png of the images after every decoding step.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Samples computed together.")
@DEVICE
@click.option("--dtype", type=NUMBER_FORMAT, help="Type of the weights. Default: fp32.")
@click.option(
    "--device-map",
    type=click.Choice(["auto", "balanced", "balanced_low_0", "sequential"]),
    help="Spread the network over all devices, memory of the CPU and the disk, in place of --device.",
)
@click.option(
    "--max-memory",
    multiple=True,
    metavar="DEVICE=SIZE",
    help="Limit of --device-map, for example 0=10GB or cpu=30GB; may be repeated. Default: what is free.",
)
@sampling
def sample(checkpoint: str, arguments: tuple[str, ...], **options: object) -> None:
    """Sample from CHECKPOINT: a zoo name, a checkpoint or run directory, or a Hugging Face hub id.

    Images are written to samples.png and text to the terminal, unless --output is given. Other arguments of the sampler
    follow as key=value, for example choice_temperature=2.
    """
    written = program("sample.program").sample(checkpoint, **choices(arguments, **options))
    if written:
        say(written)
