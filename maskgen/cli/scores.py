"""The commands that score."""

from __future__ import annotations

from typing import Any

import click

from maskgen.cli.options import DEVICE, choices, listed, program, sampling

PROTOCOL = click.option(
    "--protocol",
    metavar="NAME",
    help="clean-fid, clean-fid-legacy-pytorch, clean-fid-legacy-tensorflow, torch-fidelity, torchmetrics, "
    "torchmetrics-antialias, adm, timm:NAME, torchvision:NAME, dinov2:HUB_ID, FILE.pt, or a classifier's checkpoint.",
)
WEIGHTS = click.option("--weights", metavar="FILE", help="Weights of the protocol's network; else looked for.")
BESIDE = ("kid", "inception-score", "precision-recall", "fid-infinity")


@click.command()
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
            "inpainting",
            "likelihood",
            "probe",
            "generative-perplexity",
            "diversity",
        ]
    ),
    help="May be repeated. Default: fidelity of images, likelihood of text.",
)
@click.option(
    "--num", type=click.IntRange(2), help="Samples to score; default 10,000 images, 64 texts; inpainting 1,000."
)
@click.option("--repeats", type=click.IntRange(1), help="Sets of that many images, for an interval of the score.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", metavar="DIR|FILE.json", help="Also write the report there; a DIR keeps samples and pictures."
)
@PROTOCOL
@WEIGHTS
@click.option("--hole", metavar="WHERE", help="Of inpainting, as of `maskgen sample`; default center.")
@click.option("--completions", type=click.IntRange(2), help="Of each image whose hole is filled; default 4.")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), help="Likelihood of; default test.")
@click.option("--strata", type=click.IntRange(1), help="Masks drawn a row for a likelihood bound; default 8.")
@click.option("--scorer", metavar="CHECKPOINT|HUB_ID", help="Who reads the samples: a text checkpoint or causal model.")
@click.option("--length", type=click.IntRange(1), help="Tokens of the texts that are read; default as in training.")
@DEVICE
@sampling
def evaluate(checkpoint: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Score CHECKPOINT.

    fidelity: Frechet distance by a protocol (default fashion-classifier) beside its floors, class accuracy, PSNR, SSIM,
    codebook use; kid, inception-score, precision-recall, fid-infinity, sfid, memorisation go with it. inpainting: test
    images with a hole, completed: distance, error, diversity. likelihood: bits per token, character, byte or dimension
    with error bars. generative-perplexity: how a scorer likes the samples, beside their entropy and diversity;
    diversity: these alone. probe: `maskgen probe` as it is by default.
    """
    click.echo(program("sample.program").evaluate(checkpoint, **choices(arguments, **options)))


@click.command()
@click.argument("checkpoint")
@click.option("--data", metavar="NAME|FOLDER|YAML", help="Labelled images of the checkpoint's shape; default its own.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["linear", "knn", "finetune"]),
    default=("linear", "knn"),
    show_default=True,
    help="May be repeated.",
)
@click.option("--num", type=click.IntRange(2), help="At most so many training images.")
@click.option("--label-share", type=float, default=1.0, show_default=True, help="Of each class's training images.")
@click.option("--block", type=click.IntRange(0), default=0, help="Of a diffusion transformer; default the middle one.")
@click.option("--epochs", type=click.IntRange(1), help="Of fine-tuning; default 3.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Processor minutes of fine-tuning instead."
)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Of fine-tuning; default 1e-3.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of fine-tuning; nothing else is drawn.")
@click.option("--baseline", type=click.Choice(["pixels", "none"]), default="pixels", show_default=True)
@click.option("--output", metavar="FILE.json", help="Also write the report there.")
@DEVICE
def probe(checkpoint: str, baseline: str, **options: Any) -> None:
    """Score what CHECKPOINT's network knows of the classes of images: accuracy on the test images.

    linear: logistic regression on the mean of the encoder's features of unmasked tokens; knn: a vote of the nearest by
    cosine; finetune: the network itself trained on as a classifier, briefly. Features are kept in the cache; raw pixels
    are scored beside.
    """
    click.echo(program("sample.probe").run(checkpoint, has_baseline=baseline == "pixels", **options))


@click.command()
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
    fashion_mnist:test, or a checkpoint. Default protocol: clean-fid, or that of a statistics file;
    another package's file needs it said.
    """
    click.echo(program("sample.compare").run(a, b, **options))


@click.command()
@click.argument("images")
@click.argument("output", metavar="FILE.npz")
@PROTOCOL
@WEIGHTS
@DEVICE
def statistics(images: str, output: str, protocol: str | None, weights: str | None, device: str) -> None:
    """Write the statistics of IMAGES, for `maskgen fid` and for clean-fid, pytorch-fid and ADM."""
    click.echo(program("sample.compare").statistics(images, output, protocol, weights, device))


@click.command("fid")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT ...")
@click.option("--samplers", metavar="a,b", callback=listed(str), help="Presets; default: the recipe's.")
@click.option("--steps", metavar="4,8,16", callback=listed(int), help="Default: the recipe's.")
@click.option("--guidance", metavar="1,2,3", callback=listed(float), help="Default: the recipe's.")
@click.option("--set", "arguments", multiple=True, metavar="key=value", help="Of the sampler; may be repeated.")
@click.option("--num", "--images", "num", type=click.IntRange(2), default=10_000, show_default=True, help="Of each.")
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

    Over processes: torchrun --nproc_per_node 2 -m maskgen.sample.bench with the same arguments; say --images there, as
    torchrun takes --num for its --numa-binding.
    """
    arguments = choices(options.pop("arguments"))
    table = program("sample.bench").run(checkpoints, arguments=arguments, **options)
    if table:  # of several processes one speaks
        click.echo(table)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="DIR|FILE.json ...")
@click.option("--output", metavar="DIR", help="Where the merged report goes; default: to the terminal alone.")
def report(sources: tuple[str, ...], output: str | None) -> None:
    """Merge the reports of `bench fid`, or show those of `evaluate` and `probe` in a table, a row each.

    Scores that do not compare are refused with the reason.
    """
    click.echo(program("sample.report_table").run(sources, output))
