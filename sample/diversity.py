"""`maskgen evaluate --metric diversity`: how varied a checkpoint's texts are, by themselves."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.evaluation.metrics.text_quality import distinct_n, token_entropy
from maskgen.evaluation.report import Entry, Made, Report, publish
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.text import TextPipeline

from .metric import METRICS, metric
from .pictures import check_writable

N_GRAMS = 4


@METRICS.register("diversity")
@metric("text")
def run(
    source: str,
    /,
    *,
    num: int = 64,
    length: int | None = None,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Diversity of generated texts: token entropy, distinct n-grams, compression.

    Raises:
        UserError: a checkpoint, sampler or output that cannot be used.
    """
    if num < 2:
        raise UserError(f"--num must be at least 2, got {num}")
    path = check_writable(output, (".json",)) if output else None
    pipeline = TextPipeline(read_checkpoint(source), pick_device(device))
    generator = replace(pipeline.with_sampler(**choices), length=length or pipeline.generator.length)
    tokens = torch.cat(list(pipeline.draw(generator, num, seed=seed)))
    made: Made = {"seed": seed, "sampler": {"checkpoint": source, **settings_of(generator)}}
    entropy, *others = [*entries(tokens, made), _compression(generator.texts(tokens), made)]
    return publish(Report(entropy, others=others), path)


def entries(tokens: Tensor, made: Made) -> list[Entry]:
    """Entropy of the tokens of a sample, and distinct n-grams, tokens (N, L), N at least 2."""
    entropy, n = token_entropy(tokens), len(tokens)
    spread = float(entropy.std() / n**0.5)
    grams = range(1, min(tokens.shape[1], N_GRAMS) + 1)
    return [
        Entry("token_entropy[nats]", "samples", float(entropy.mean()), n, standard_error=spread, **made),
        *(Entry(f"distinct_{size}", "samples", distinct_n(tokens, size), n, **made) for size in grams),
    ]


def _compression(texts: list[str], made: Made) -> Entry:
    """Bytes of all samples over what zlib makes of them: high where they repeat themselves or each other."""
    raw = "\n".join(texts).encode()
    return Entry("compression[zlib]", "samples", len(raw) / len(zlib.compress(raw, 9)), len(texts), **made)
