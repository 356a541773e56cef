"""The commands around training."""

from __future__ import annotations

import signal
import threading

import click

from maskgen.cli.names import CHECKPOINT, RECIPE
from maskgen.cli.options import DEVICE, Finite, program, say


@click.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--output", metavar="DIR", help="Run directory. Default: runs/RECIPE.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="yes",
    metavar="[auto]",
    help="Continue from the newest checkpoint of the run directory; `--resume auto` starts a new run if there is none.",
)
@click.option("--seed", type=int, metavar="N", help="Random seed; the same as seed=N.")
@click.option("--data", metavar="PATH", help="File or folder of the data; the same as data.path=PATH.")
@click.option(
    "--from", "source", type=CHECKPOINT, metavar="CHECKPOINT", help="Start from the weights of CHECKPOINT (fine-tune)."
)
@click.option(
    "--weights", type=click.Choice(["ema", "model"]), help="Which weights to start from. Default: ema, the averaged."
)
@DEVICE
def train(
    recipe: str,
    overrides: tuple[str, ...],
    resume: str | None,
    seed: int | None,
    data: str | None,
    source: str | None,
    weights: str | None,
    **options: str | None,
) -> None:
    """Train RECIPE, a name from `maskgen recipes` or a YAML file.

    Any key of the recipe can be overridden: train.steps=500 train.lr=1e-3 model.depth=4.
    """
    if resume not in (None, "yes", "auto"):  # `--resume train.steps=500`: the value is an override
        overrides, resume = (str(resume), *overrides), "yes"
    overrides += () if seed is None else (f"seed={seed}",)
    overrides += () if data is None else (f"data.path={data}",)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it requests a checkpoint, and there is none to write yet
    start = "auto" if resume == "auto" else resume is not None
    given = {"checkpoint": source, "weights": weights}
    chosen = {key: value for key, value in given.items() if value is not None}
    checkpoint = program("train.program").run(recipe, overrides, resume=start, start=chosen, **options)
    say(f"checkpoint: {checkpoint}")


@click.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--gpu", default="h100", show_default=True, metavar="NAME", help="GPU to estimate hours for: h100, a100, 4090, ..."
)
@click.option("--price", type=Finite(0), metavar="USD", help="Price of one hour of this GPU.")
@click.option(
    "--mfu",
    type=Finite(),
    default=0.4,
    show_default=True,
    help="Assumed model FLOPs utilisation, a share of the peak.",
)
@click.option("--no-measure", is_flag=True, help="Do not time training steps on this machine.")
@click.option(
    "--classes",
    type=click.IntRange(0),
    metavar="N",
    help="Number of classes, if the images are not here. Default: 1000.",
)
@click.option("--vocab", type=click.IntRange(1), metavar="N", help="Vocabulary size, if the text is not here.")
@click.option(
    "--latents",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    metavar="N",
    help="Channels of the latents, if the autoencoder is not here.",
)
def cost(recipe: str, overrides: tuple[str, ...], **options: object) -> None:
    """Estimate what training RECIPE costs: MACs by keep ratio and stage, FLOPs, hours, price. Needs no data."""
    options |= {"is_measured": not options.pop("no_measure")}
    names = {"classes": "n_classes", "vocab": "vocab_size", "latents": "latent_channels"}
    options |= {name: options.pop(option) for option, name in names.items()}
    say(program("train.cost_report").run(recipe, overrides, **options))


@click.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--parts", type=click.IntRange(1), default=1, show_default=True, help="Number of parts to split the data into."
)
@click.option("--part", type=click.IntRange(0), help="Encode this part only. Default: every part that is missing.")
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Parts to encode at once, one core each."
)
@DEVICE
def precompute(recipe: str, overrides: tuple[str, ...], **options: object) -> None:
    """Encode the tokens or latents RECIPE trains on into the cache. An interrupted run continues when called again."""
    say(program("train.precompute").run(recipe, overrides, **options))


@click.command()
@click.argument("directory", default="runs")
def runs(directory: str) -> None:
    """List the runs in DIRECTORY and below: state, step, score, last error."""
    say(program("train.runs").run(directory))
