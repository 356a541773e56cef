"""The command line. Programs are imported when they run, so help is instant and needs no torch."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from maskgen.cli import scores as cli_scores
from maskgen.cli.options import DEVICE, choices, program, sampling
from maskgen.core.console import plain, surviving_output
from maskgen.core.errors import DiskFull, OutOfMemory, UserError, is_out_of_memory
from maskgen.core.files import NO_SPACE
from maskgen.core.version import __version__
from maskgen.recipes import shipped

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --batch_size is --batch-size
}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="maskgen")
def cli() -> None:
    """Masked generative models: train, sample, score."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--output", metavar="DIR", help="Run directory; default runs/RECIPE.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="yes",
    metavar="[auto]",
    help="Continue from the newest checkpoint of the run directory; `--resume auto` starts a new run if there is none.",
)
@click.option("--seed", type=int, help="Same as seed=N.")
@DEVICE
def train(
    recipe: str, overrides: tuple[str, ...], output: str | None, resume: str | None, seed: int | None, device: str
) -> None:
    """Train RECIPE (a name of `maskgen recipes`, or a YAML file).

    Any key can be overridden: train.steps=500 train.lr=1e-3 model.depth=4.
    """
    if resume not in (None, "yes", "auto"):  # `--resume train.steps=500`: the value is an override
        overrides, resume = (str(resume), *overrides), "yes"
    overrides += () if seed is None else (f"seed={seed}",)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it requests a checkpoint, and there is none to write yet
    with surviving_output():
        start = "auto" if resume == "auto" else resume is not None
        checkpoint = program("train.program").run(recipe, overrides, output, start, device)
        click.echo(f"checkpoint: {checkpoint}")


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--gpu", default="h100", show_default=True, help="Hours are projected for one; a100, 4090, l4, ...")
@click.option("--price", type=click.FloatRange(0), metavar="USD", help="Of an hour of this GPU.")
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Share of its peak that is assumed.")
@click.option("--no-measure", is_flag=True, help="Do not time some steps on this machine.")
@click.option("--classes", type=click.IntRange(0), help="Of images that are not here; default 1000.")
@click.option("--vocab", type=click.IntRange(1), help="Tokens of a vocabulary whose text is not here.")
@click.option("--latents", type=click.IntRange(1), default=4, show_default=True, help="Channels of latents, same.")
def cost(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """What training RECIPE takes: MACs by keep ratio and stage, FLOPs, hours, price. Needs no data."""
    options |= {"is_measured": not options.pop("no_measure")}
    names = {"classes": "n_classes", "vocab": "vocab_size", "latents": "latent_channels"}
    options |= {name: options.pop(option) for option, name in names.items()}
    click.echo(program("train.cost_report").run(recipe, overrides, **options))


@cli.command()
@click.argument("checkpoint")
@click.option("--num", type=click.IntRange(1), help="Samples; default 40 images, 4 texts.")
@click.option("--class", "classes", multiple=True, metavar="NAME|ID|all", help="Taken in turn; default all.")
@click.option("--length", type=click.IntRange(1), help="Tokens of a text; default as in training.")
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="Captions, in turn; or what a text begins with."
)
@click.option("--infill", metavar="TEXT", help='A text with gaps, every _ a token: "In the ____ God created".')
@click.option("--picture", metavar="FILE", help="An image to complete: see --hole.")
@click.option(
    "--hole",
    metavar="WHERE",
    help="Of --picture: center (default), border, left, right, top, bottom, x0,y0,x1,y1, a mask.",
)
@click.option("--show-steps", is_flag=True, help="Show the first text resolving.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sample i depends on seed + i alone.")
@click.option("--output", metavar="PATH", help="Images: .png grid, .npz, or a folder for PNGs; text: .txt or .jsonl.")
@click.option("--animate", metavar="FILE", help="Also a .gif or .png film of the unmasking of images.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples computed together.")
@DEVICE
@sampling
def sample(checkpoint: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Sample from CHECKPOINT: a zoo name, a checkpoint or run directory, or a hub id.

    Images go to samples.png, text to the terminal, unless --output says otherwise. Further arguments of the sampler
    follow as key=value: choice_temperature=2.
    """
    written = program("sample.program").sample(checkpoint, **choices(arguments, **options))
    if written:
        click.echo(written)


@cli.command()
@click.argument("checkpoint")
@click.argument("directory")
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--summary", metavar="TEXT", help="One line about it.")
@click.option("--report", metavar="FILE.json", help="Scores for the card, as `maskgen evaluate --output` writes them.")
def export(checkpoint: str, directory: str, dtype: str, summary: str | None, report: str | None) -> None:
    """Copy CHECKPOINT to DIRECTORY without its training state, with a model card."""
    program("sample.export").run(checkpoint, directory, dtype, summary, report)
    click.echo(directory)


@cli.group()
def bench() -> None:
    """Compare recipes, checkpoints, ways of sampling."""


@bench.command()
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--experiment", metavar="NAME", help="A shipped one (an unknown name lists them); default budget.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Processor minutes an arm and seed.")
@click.option("--seeds", type=click.IntRange(1), help="Runs an arm.")
@click.option("--arms", metavar="a,b", help="Only these; a group of the file stands for its arms.")
@click.option("--num", type=click.IntRange(2), help="Samples the last checkpoint is scored with.")
@click.option("--output", metavar="DIR", help="Default runs/bench-NAME.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings side by side, one core each; alone one has all cores.")
@click.option("--file", metavar="YAML", help="An experiment of your own.")
def budget(**options: Any) -> None:
    """Train several recipes for equal processor seconds and score them alike. Goes on where it was stopped.

    Keys are overridden in the recipes of all arms: tokenizer.size=4.
    """
    click.echo(program("train.bench").run(**options))


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--parts", type=click.IntRange(1), default=1, show_default=True, help="Pieces that are encoded each for itself."
)
@click.option(
    "--part", type=click.IntRange(0), help="Only this piece, on this machine say; default all that are missing."
)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Pieces side by side, a core each."
)
@DEVICE
def precompute(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Put the tokens or latents RECIPE trains on into the cache, before it is trained. Goes on where it was stopped."""
    click.echo(program("train.precompute").run(recipe, overrides, **options))


@cli.command()
@click.argument("directory", default="runs")
def runs(directory: str) -> None:
    """List the runs in DIRECTORY and below: state, step, score, last error."""
    click.echo(program("train.runs").run(directory))


@cli.command()
@click.argument("layout", type=click.Choice(["dit", "mdtv2", "maskdit", "mar", "emigm"]))
@click.argument("file")
@click.option("--output", required=True, metavar="DIR", help="The checkpoint to be.")
@click.option("--weights", type=click.Choice(["ema", "model"]), help="Which of the two that a training file holds.")
def convert(layout: str, file: str, output: str, weights: str | None) -> None:
    """Turn FILE, a public checkpoint (.pt or .safetensors) of DiT, MDTv2, MaskDiT, MAR or eMIGM, into ours.

    Nothing in the file is ever run: it is read as tensors and plain settings, or refused.
    """
    click.echo(program("checkpoints.convert.conversion").run(layout, file, output, weights))


@cli.command()
def recipes() -> None:
    """List the shipped recipes."""
    _table([(name, shipped.recipe_summary(name)) for name in shipped.recipe_names()])


@cli.command()
def samplers() -> None:
    """List the sampler presets and their arguments."""
    module = importlib.import_module("maskgen.samplers")
    kinds = (("tokens and text, by unmasking:", module.SAMPLERS), ("Gaussian processes:", module.FIELD_SAMPLERS))
    for title, registry in kinds:
        click.echo(title)
        rows = [
            (name, f"{registry.summary(name)}\n  {' '.join(registry.arguments(name))}") for name in registry.names()
        ]
        _table(rows)


@cli.command()
def zoo() -> None:
    """List the checkpoints that come with the package."""
    _table([(name, shipped.zoo_summary(name)) for name in shipped.zoo_names()])


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:{width}}  " + text.replace("\n", "\n" + " " * (width + 2)))


for _command in (cli_scores.evaluate, cli_scores.fid, cli_scores.probe, cli_scores.statistics, cli_scores.report):
    cli.add_command(_command)
bench.add_command(cli_scores.bench_fid)


def main(*arguments: str) -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    try:
        cli.main([*arguments, *sys.argv[1:]], prog_name="maskgen", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        is_training = (arguments or tuple(sys.argv[1:]))[:1] == ("train",)
        click.echo("stopped" + "; add --resume to continue from the last checkpoint" * is_training, err=True)
        sys.exit(130)
    except UserError as error:
        click.echo(f"Error: {plain(str(error))}", err=True)
        sys.exit(error.code)
    except OSError as error:
        click.echo(f"Error: {plain(str(error))}", err=True)
        sys.exit(DiskFull.code if error.errno in NO_SPACE else 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo("Error: out of memory; lower --batch-size or --num, or choose a smaller model or device", err=True)
        sys.exit(OutOfMemory.code)


if __name__ == "__main__":
    main()
