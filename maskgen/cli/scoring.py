"""The commands that score."""

from __future__ import annotations

import click

from maskgen.cli.names import CHECKPOINT, FEATURE_METRICS, METRICS, PROTOCOLS, Name, protocol_names, registered
from maskgen.cli.options import DEVICE, Finite, choices, listing, program, sampling, say

PROTOCOL = click.option(
    "--protocol",
    type=Name("protocol", protocol_names, is_open=True),
    metavar="NAME",
    help="Network and resizing that give the features: a name from --list-protocols, a TorchScript FILE.pt, or the "
    "checkpoint of a classifier.",
)
WEIGHTS = click.option(
    "--weights", metavar="FILE", help="Weights of the protocol's network. Default: searched for, then downloaded."
)
BESIDE = click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=Name("metric", registered(FEATURE_METRICS)),
    metavar="NAME",
    help="Metric to compute beside the Fréchet distance, a name from --list-metrics; may be repeated.",
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first sample.")


LIST_METRICS = listing("list-metrics", METRICS, FEATURE_METRICS)
LIST_BESIDE = listing("list-metrics", FEATURE_METRICS)
LIST_PROTOCOLS = listing("list-protocols", PROTOCOLS)


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=Name("metric", registered(METRICS, FEATURE_METRICS)),
    metavar="NAME",
    help="Metric to compute, a name from --list-metrics; may be repeated. Default: fidelity of images, likelihood of "
    "text.",
)
@click.option(
    "--num",
    type=click.IntRange(2),
    metavar="N",
    help="Number of samples. Default: 10,000 images, 64 texts, 1,000 images to complete.",
)
@click.option("--repeats", type=click.IntRange(1), metavar="N", help="Sets of samples, for a confidence interval.")
@SEED
@click.option(
    "--output", metavar="DIR|FILE.json", help="Also write the report there; a DIR keeps samples and pictures, too."
)
@PROTOCOL
@WEIGHTS
@click.option(
    "--hole", metavar="WHERE", help="Inpainting: the part to generate, as in `maskgen sample`. Default: center."
)
@click.option(
    "--completions", type=click.IntRange(2), metavar="N", help="Inpainting: completions per image. Default: 4."
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    help="Likelihood, exact match: the data to evaluate. Default: test.",
)
@click.option(
    "--strata",
    type=click.IntRange(1),
    metavar="N",
    help="Likelihood bound: masks per row, at evenly spread noise levels. Default: 8.",
)
@click.option(
    "--scorer",
    metavar="CHECKPOINT|HUB_ID",
    help="Generative perplexity: the language model that computes it, a text checkpoint or a causal model of the hub.",
)
@click.option(
    "--length", type=click.IntRange(1), metavar="N", help="Tokens per generated text. Default: as in training."
)
@click.option(
    "--file",
    metavar="FILE.jsonl",
    help="Choices: tasks, an object with prompt, choices and answer a line. Exact match: prompt and response, or "
    "messages. Default: held-out data of its own.",
)
@click.option(
    "--draws", type=click.IntRange(1), metavar="N", help="Choices: masks per answer of a masked model. Default: 128."
)
@click.option(
    "--chat",
    is_flag=True,
    default=None,
    help="Choices: give the prompt as a message, in the layout of the chat template.",
)
@LIST_METRICS
@LIST_PROTOCOLS
@DEVICE
@sampling
def evaluate(checkpoint: str, arguments: tuple[str, ...], **options: object) -> None:
    """Score CHECKPOINT, a zoo name, a checkpoint or run directory, or a Hugging Face hub id.

    Options of a metric and arguments of the sampler may also be given as key=value.
    """
    say(program("sample.program").evaluate(checkpoint, **choices(arguments, **options)))


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option(
    "--data",
    metavar="NAME|FOLDER|YAML",
    help="Labelled images of the checkpoint's shape. Default: the data it was trained on.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["linear", "knn", "finetune", "retrieval", "inversion"]),
    help="Probe to run; may be repeated. Default: linear and knn of images, retrieval and inversion of text.",
)
@click.option("--num", type=click.IntRange(2), metavar="N", help="Maximum number of training images.")
@click.option(
    "--label-share",
    type=Finite(),
    multiple=True,
    default=(1.0,),
    show_default=True,
    help="Share of the training images of each class whose label is used; may be repeated.",
)
@click.option(
    "--cells",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Average features over N x N parts of the image, side by side, not over all of it.",
)
@click.option(
    "--block",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Block of a diffusion transformer whose features are probed. Default: the middle one.",
)
@click.option(
    "--subspace",
    metavar="top:SHARE|bottom:SHARE",
    help="Project images to the principal directions that hold the first or last SHARE of the pixels' variance.",
)
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Fine-tuning: number of epochs. Default: 3.")
@click.option(
    "--minutes",
    type=Finite(min=0, min_open=True),
    help="Fine-tuning: CPU minutes to train for, instead of --epochs.",
)
@click.option("--lr", type=Finite(min=0, min_open=True), help="Fine-tuning: learning rate. Default: 1e-3.")
@click.option("--seed", type=int, default=0, show_default=True, help="Fine-tuning and text: random seed.")
@click.option(
    "--baseline",
    type=click.Choice(["pixels", "none"]),
    default="pixels",
    show_default=True,
    help="Features to compare with.",
)
@click.option("--output", metavar="FILE.json", help="Also write the report there.")
@DEVICE
def probe(checkpoint: str, baseline: str, **options: object) -> None:
    """Measure what the features of CHECKPOINT's network hold: image classes, or which texts belong together.

    linear: logistic regression on the mean feature of the unmasked tokens; knn: nearest neighbours by cosine
    similarity; finetune: the network itself, trained briefly as a classifier. Features are cached. Of text generators,
    retrieval: which passage is the second half of this one; inversion: tokens recovered from the last hidden vectors.
    """
    say(program("sample.probe").run(checkpoint, has_baseline=baseline == "pixels", **options))


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--num", type=click.IntRange(1), default=64, show_default=True, help="Number of test images.")
@click.option(
    "--block", type=click.IntRange(0), default=0, metavar="N", help="Diffusion transformers: the last block to run."
)
@click.option("--output", metavar="DIR", help="Also write layers.json, layers.png and attention.png there.")
@DEVICE
def layers(checkpoint: str, **options: object) -> None:
    """Show what the blocks of CHECKPOINT's network do to the tokens of images.

    Coding rate and share of nonzero numbers, compression in the subspaces of MSSA, entropy of each head's attention,
    and how much the features change if a head contributes nothing.
    """
    say(program("sample.layers").run(checkpoint, **options))


@click.command()
@click.argument("a")
@click.argument("b")
@PROTOCOL
@WEIGHTS
@BESIDE
@click.option(
    "--num",
    type=click.IntRange(2),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of samples to draw from a checkpoint.",
)
@SEED
@click.option("--output", metavar="FILE.json", help="Also write the report there.")
@LIST_BESIDE
@LIST_PROTOCOLS
@DEVICE
def fid(a: str, b: str, **options: object) -> None:
    """Fréchet distance of A to the reference B.

    Each is a folder, .zip or .npz of images, an .npz of statistics (mu, sigma), DATASET:SPLIT such as
    fashion_mnist:test, or a checkpoint. The protocol is clean-fid by default, or that of a statistics file; a file of
    another package does not name its protocol, so give --protocol with it.
    """
    say(program("sample.compare").run(a, b, **options))


@click.command()
@click.argument("images")
@click.argument("output", metavar="FILE.npz")
@PROTOCOL
@WEIGHTS
@LIST_PROTOCOLS
@DEVICE
def statistics(images: str, output: str, protocol: str | None, weights: str | None, device: str) -> None:
    """Write the feature statistics of IMAGES, for `maskgen fid` and for clean-fid, pytorch-fid and ADM."""
    say(program("sample.compare").statistics(images, output, protocol, weights, device))


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="DIR|FILE.json ...")
@click.option("--output", metavar="DIR", help="Write the merged report of sweeps there. Default: print it only.")
def report(sources: tuple[str, ...], output: str | None) -> None:
    """Merge the reports of `bench fid`, or show those of `evaluate` and `probe` as a table, one row each.

    Scores that do not compare are refused, with the reason.
    """
    say(program("sample.report_table").run(sources, output))
