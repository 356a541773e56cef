"""`maskgen bench`: comparisons of recipes, checkpoints and samplers."""

from __future__ import annotations

from typing import Any

import click

from maskgen.cli.options import DEVICE, Finite, choices, finite, listed, program, say
from maskgen.cli.scoring import BESIDE, LIST_BESIDE, LIST_PROTOCOLS, PROTOCOL, SEED, WEIGHTS


@click.group()
def bench() -> None:
    """Compare recipes, checkpoints and samplers."""


@bench.command()
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--experiment", metavar="NAME", help="A shipped experiment; an unknown name lists them. Default: budget.")
@click.option("--minutes", type=Finite(min=0, min_open=True), help="CPU minutes of training per arm and seed.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Number of training runs per arm.")
@click.option("--arms", metavar="a,b", help="Arms to run; the name of a group stands for all its arms. Default: all.")
@click.option("--num", type=click.IntRange(2), metavar="N", help="Number of samples to score the last checkpoint with.")
@click.option("--output", metavar="DIR", help="Default: runs/bench-NAME.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Training runs at once, one core each. A single one uses all cores.",
)
@click.option("--file", metavar="YAML", help="An experiment of your own.")
def budget(**options: object) -> None:
    """Train several recipes for equal CPU time and score them in the same way.

    An interrupted experiment continues when called again. Keys are overridden in the recipes of all arms, for example
    tokenizer.size=4.
    """
    say(program("train.bench").run(**options))


@bench.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT ...")
@click.option("--samplers", metavar="a,b", callback=listed(str), help="Samplers to compare. Default: the recipe's.")
@click.option("--steps", metavar="4,8,16", callback=listed(int), help="Decoding steps. Default: the recipe's.")
@click.option("--guidance", metavar="1,2,3", callback=listed(finite), help="Guidance scales. Default: the recipe's.")
@click.option("--set", "arguments", multiple=True, metavar="key=value", help="Sampler argument; may be repeated.")
@click.option(
    "--num",
    "--images",
    "num",
    type=click.IntRange(2),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of samples per setting.",
)
@SEED
@BESIDE
@click.option(
    "--output", metavar="DIR", default="bench", show_default=True, help="Folder for report, pictures and samples."
)
@PROTOCOL
@WEIGHTS
@LIST_BESIDE
@LIST_PROTOCOLS
@DEVICE
def fid(checkpoints: tuple[str, ...], **options: Any) -> None:
    """Score CHECKPOINTs over samplers, steps and guidance. An interrupted run continues when called again.

    On several processes: torchrun --nproc_per_node 2 -m maskgen.sample.bench with the same arguments, and --images in
    place of --num, which torchrun takes for itself.
    """
    arguments = choices(options.pop("arguments"))
    table = program("sample.bench").run(checkpoints, arguments=arguments, **options)
    if table:  # of several processes only the first has one
        say(table)
