"""The command line. Programs are imported when they run, so help is instant and needs no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import click
import yaml

from maskgen import __version__, shipped
from maskgen.errors import UserError

DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --batch_size is --batch-size
}


def _program(name: str) -> Any:
    """A module of a program, by name: the library has no import of one."""
    return importlib.import_module(f"maskgen.{name}")


def _sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose a sampler."""
    options = [
        click.option("--sampler", metavar="PRESET", help="One of `maskgen samplers`; default: the recipe's."),
        click.option("--steps", type=click.IntRange(1), help="Decoding steps."),
        click.option("--guidance", type=click.FloatRange(0), metavar="W", help="Guidance scale, 1 = off."),
        click.option("--temperature", type=click.FloatRange(0), metavar="T", help="Of the token draws."),
        click.argument("arguments", nargs=-1, metavar="[key=value ...]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _choices(arguments: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """The sampling options that were given, and the sampler's own arguments as key=value."""
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
            chosen[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{key}: the value {text!r} is not YAML") from None
    return chosen


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="maskgen")
def cli() -> None:
    """Masked generative models: train, sample, score."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--output", metavar="DIR", help="Run directory; default runs/RECIPE.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the run directory.")
@click.option("--seed", type=int, help="Same as seed=N.")
@DEVICE
def train(
    recipe: str, overrides: tuple[str, ...], output: str | None, resume: bool, seed: int | None, device: str
) -> None:
    """Train RECIPE (a name of `maskgen recipes`, or a YAML file).

    Any key can be overridden: train.steps=500 train.lr=1e-3 model.depth=4.
    """
    overrides += () if seed is None else (f"seed={seed}",)
    checkpoint = _program("train.program").run(recipe, overrides, output, resume, device)
    click.echo(f"checkpoint: {checkpoint}")


@cli.command()
@click.argument("checkpoint")
@click.option("--num", type=click.IntRange(1), help="Samples; default 40 images, 4 texts.")
@click.option("--class", "classes", multiple=True, metavar="NAME|ID|all", help="Taken in turn; default all.")
@click.option("--length", type=click.IntRange(1), help="Tokens of a text; default as in training.")
@click.option("--prompt", metavar="TEXT", help="What a text begins with.")
@click.option("--infill", metavar="TEXT", help='A text with gaps, every _ a token: "In the ____ God created".')
@click.option("--show-steps", is_flag=True, help="Show the first text resolving.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sample i depends on seed + i alone.")
@click.option("--output", metavar="PATH", help="Images: .png grid, .npz, or a folder for PNGs; text: .txt or .jsonl.")
@click.option("--animate", metavar="FILE", help="Also a .gif or .png film of the unmasking of images.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples computed together.")
@DEVICE
@_sampling
def sample(checkpoint: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Sample from CHECKPOINT: a zoo name, a checkpoint or run directory, or a hub id.

    Images go to samples.png, text to the terminal, unless --output says otherwise. Further arguments of the sampler
    follow as key=value: choice_temperature=2.
    """
    written = _program("sample.program").sample(checkpoint, **_choices(arguments, **options))
    if written:
        click.echo(written)


PROTOCOL = click.option(
    "--protocol",
    metavar="NAME",
    help="clean-fid, clean-fid-legacy-pytorch, clean-fid-legacy-tensorflow, torch-fidelity, torchmetrics, "
    "torchmetrics-antialias, adm, timm:NAME, torchvision:NAME, dinov2:HUB_ID, FILE.pt, or a classifier's checkpoint.",
)
WEIGHTS = click.option("--weights", metavar="FILE", help="Weights of the protocol's network; else looked for.")
BESIDE = ("kid", "inception-score", "precision-recall", "fid-infinity")


@cli.command()
@click.argument("checkpoint")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(
        [
            "fidelity",
            *BESIDE,
            "sfid",
            "memorisation",
            "reconstruction",
            "likelihood",
            "generative-perplexity",
            "diversity",
        ]
    ),
    help="May be repeated. Default: fidelity of images, likelihood of text.",
)
@click.option("--num", type=click.IntRange(2), help="Samples to score; default 10,000 images, 64 texts.")
@click.option("--repeats", type=click.IntRange(1), help="Sets of that many images, for an interval of the score.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", metavar="DIR|FILE.json", help="Also write the report there; a DIR keeps samples and pictures."
)
@PROTOCOL
@WEIGHTS
@click.option("--split", type=click.Choice(["test", "validation", "train"]), help="Likelihood of; default test.")
@click.option("--strata", type=click.IntRange(1), help="Masks drawn a row for a likelihood bound; default 8.")
@click.option("--scorer", metavar="CHECKPOINT|HUB_ID", help="Who reads the samples: a text checkpoint or causal model.")
@click.option("--length", type=click.IntRange(1), help="Tokens of the texts that are read; default as in training.")
@DEVICE
@_sampling
def evaluate(checkpoint: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Score CHECKPOINT.

    fidelity: Frechet distance by a protocol (default fashion-classifier) beside its floors, class accuracy, PSNR, SSIM,
    codebook use; kid, inception-score, precision-recall, fid-infinity, sfid, memorisation go with it. likelihood: bits
    per token, character, byte or dimension with error bars. generative-perplexity: how a scorer likes the samples,
    beside their entropy and diversity; diversity: these alone.
    """
    click.echo(_program("sample.program").evaluate(checkpoint, **_choices(arguments, **options)))


@cli.command()
@click.argument("a")
@click.argument("b")
@PROTOCOL
@WEIGHTS
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice([*BESIDE, "sfid"]),
    help="Beside the distance; may be repeated.",
)
@click.option("--num", type=click.IntRange(2), default=10_000, show_default=True, help="Samples of a checkpoint.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", metavar="FILE.json", help="Also write the report there.")
@DEVICE
def fid(a: str, b: str, **options: Any) -> None:
    """Frechet distance of A to the reference B.

    Each is a folder, .zip or .npz of images, an .npz of statistics (mu, sigma), DATASET:SPLIT such as
    fashion_mnist:test, or a checkpoint. Default protocol: clean-fid, or that of a statistics file.
    """
    click.echo(_program("sample.compare").run(a, b, **options))


@cli.command()
@click.argument("images")
@click.argument("output", metavar="FILE.npz")
@PROTOCOL
@WEIGHTS
@DEVICE
def statistics(images: str, output: str, protocol: str | None, weights: str | None, device: str) -> None:
    """Write the statistics of IMAGES, for `maskgen fid` and for clean-fid, pytorch-fid and ADM."""
    click.echo(_program("sample.compare").statistics(images, output, protocol, weights, device))


def _listed(kind: Callable[[str], Any]) -> Callable[[Any, Any, str | None], tuple[Any, ...] | None]:
    """A callback for values given as a,b,c."""

    def split(_: Any, option: Any, text: str | None) -> tuple[Any, ...] | None:
        if text is None:
            return None
        try:
            return tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list such as {option.metavar}") from None

    return split


@cli.group()
def bench() -> None:
    """Compare many ways of doing one thing."""


@bench.command("fid")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT ...")
@click.option("--samplers", metavar="a,b", callback=_listed(str), help="Presets; default: the recipe's.")
@click.option("--steps", metavar="4,8,16", callback=_listed(int), help="Default: the recipe's.")
@click.option("--guidance", metavar="1,2,3", callback=_listed(float), help="Default: the recipe's.")
@click.option("--num", type=click.IntRange(2), default=10_000, show_default=True, help="Samples of each.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice([*BESIDE, "sfid"]),
    help="Beside the distance; may be repeated.",
)
@click.option("--output", metavar="DIR", default="bench", show_default=True, help="Report, pictures and samples.")
@PROTOCOL
@WEIGHTS
@DEVICE
def bench_fid(checkpoints: tuple[str, ...], **options: Any) -> None:
    """Score CHECKPOINTs over samplers, steps and guidance; an interrupted run goes on when called again.

    Over processes: torchrun --nproc_per_node 2 -m maskgen.sample.bench with the same arguments.
    """
    table = _program("sample.bench").run(checkpoints, **options)
    if table:  # of several processes one speaks
        click.echo(table)


@cli.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR ...")
@click.option("--output", metavar="DIR", help="Where the merged report goes; default: to the terminal alone.")
def report(directories: tuple[str, ...], output: str | None) -> None:
    """Merge the reports of benchmark runs; scores that do not compare are refused with the reason."""
    click.echo(_program("sample.bench_report").merge(directories, output))


@cli.command()
@click.argument("checkpoint")
@click.argument("directory")
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--summary", metavar="TEXT", help="One line about it.")
@click.option("--report", metavar="FILE.json", help="Scores for the card, as `maskgen evaluate --output` writes them.")
def export(checkpoint: str, directory: str, dtype: str, summary: str | None, report: str | None) -> None:
    """Copy CHECKPOINT to DIRECTORY without its training state, with a model card."""
    _program("sample.export").run(checkpoint, directory, dtype, summary, report)
    click.echo(directory)


@cli.command()
def recipes() -> None:
    """List the shipped recipes."""
    _table([(name, shipped.recipe_summary(name)) for name in shipped.recipe_names()])


@cli.command()
def samplers() -> None:
    """List the sampler presets and their arguments."""
    registry = importlib.import_module("maskgen.samplers").SAMPLERS
    rows = [(name, registry.summary(name), "  " + " ".join(registry.arguments(name))) for name in registry.names()]
    _table([(name, f"{summary}\n{arguments}") for name, summary, arguments in rows])


@cli.command()
def zoo() -> None:
    """List the checkpoints that come with the package."""
    _table([(name, shipped.zoo_summary(name)) for name in shipped.zoo_names()])


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:{width}}  " + text.replace("\n", "\n" + " " * (width + 2)))


def main(*arguments: str) -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    try:
        cli.main([*arguments, *sys.argv[1:]], prog_name="maskgen", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; `maskgen train ... --resume` goes on from a run's last checkpoint", err=True)
        sys.exit(130)
    except (UserError, OSError) as error:  # a full disk, say
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
