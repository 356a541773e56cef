"""`maskgen evaluate --metric generative-perplexity`: the perplexity of samples under another language model."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import CheckpointError, load_text_model, newest_in, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.text_quality import CausalLMScorer, CheckpointScorer, Scorer, generative_perplexity
from maskgen.evaluation.report import Entry, Made, Report, publish
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.text import TextPipeline
from maskgen.recipes.shipped import INFO, zoo_names

from . import diversity
from .likelihood import schedule_of
from .metric import METRICS, metric
from .nfe import NFE, CountedDenoiser
from .pictures import check_writable

BATCH = 32


@METRICS.register("generative-perplexity")
@metric("text")
def run(
    source: str,
    /,
    *,
    scorer: str | None = None,
    num: int = 64,
    length: int | None = None,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Perplexity of generated texts under a language model, beside their entropy and diversity.

    Raises:
        UserError: a checkpoint, scorer, sampler or output that cannot be used.
    """
    if scorer is None:
        raise UserError(
            "--metric generative-perplexity needs --scorer, the language model that computes it: a text "
            "checkpoint, or a causal model of the hub"
        )
    if num < 2 or (length is not None and length < 1):
        raise UserError(f"--num must be at least 2 and --length at least 1, got {num} and {length}")
    path = check_writable(output, (".json",)) if output else None
    place = pick_device(device)
    reader = _scorer(scorer, seed, place)
    pipeline = TextPipeline(read_checkpoint(source), place)
    generator = replace(pipeline.with_sampler(**choices), length=length or pipeline.generator.length)
    tokens, seconds, n_evaluations = _draw(pipeline, generator, num, seed)
    cost = {NFE: n_evaluations, "seconds_per_sample": seconds}
    nats, counts = _scored(reader, pipeline, generator, tokens)
    made: Made = {"seed": seed, "sampler": {"checkpoint": source, **settings_of(generator)}}
    name = f"generative_perplexity[{reader.name}{', bound' * reader.is_bound}, corpus]"
    score = Entry(name, "samples", generative_perplexity(nats, counts), num, **made)
    others = diversity.entries(tokens, made)
    others += [Entry(key, "samples", value / num, num, **made) for key, value in cost.items()]
    table = publish(Report(score, others=others), path)
    return table + (f"\n{reader.n_cut} of {num} texts were cut at the scorer's context" if reader.n_cut else "")


def _scored(reader: Scorer, pipeline: TextPipeline, generator: Generator, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (N,) of samples and their numbers of scored tokens (N,).

    Raises:
        UserError: no token to score.
    """
    if isinstance(reader, CheckpointScorer) and reader.tokenizer.fingerprint() == pipeline.tokenizer.fingerprint():
        nats, counts = reader.of_tokens(list(tokens))  # the end of a document has no text of its own
    else:
        nats, counts = reader(generator.texts(tokens))
    if not counts.any():
        raise UserError(f"the scorer {reader.name} finds no token to score in the samples; raise --length")
    return nats, counts


def _draw(pipeline: TextPipeline, generator: Generator, num: int, seed: int) -> tuple[Tensor, float, int]:
    """Tokens (N, L), the seconds they took, and the number of rows that the network was evaluated on."""
    counted = CountedDenoiser(generator.denoiser)
    began, parts = time.perf_counter(), []
    with tqdm(total=num, desc="samples", unit="text", disable=None) as bar:
        for part in pipeline.draw(replace(generator, denoiser=counted), num, seed=seed, batch_size=BATCH):
            parts.append(part)
            bar.update(len(part))
    return torch.cat(parts), time.perf_counter() - began, counted.n_rows


def _scorer(name: str, seed: int, device: torch.device) -> Scorer:
    """A checkpoint of this package if there is one of that name, else a causal model of Hugging Face."""
    path = local_path(name)
    is_ours = name in zoo_names() or (path / INFO).is_file() or newest_in(path) is not None
    try:
        checkpoint = read_checkpoint(name)
    except CheckpointError:  # a folder or hub id may be a causal model's
        if is_ours:
            raise
        return CausalLMScorer(name, device)
    network, tokenizer = load_text_model(checkpoint)
    rng, schedule = Rng.stream(seed, "scorer"), schedule_of(checkpoint)
    return CheckpointScorer(network.to(device), tokenizer, rng, name, schedule=schedule)
