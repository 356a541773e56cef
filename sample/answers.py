"""`maskgen evaluate --metric exact-match`: how often a language model's answer is the right one, word for word."""

from __future__ import annotations

import math
from typing import Any

from tqdm import tqdm

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.data.text.answers import prompt_tokens
from maskgen.data.text.conversations import Conversations
from maskgen.evaluation.report import Entry, Made, Report, publish
from maskgen.pipelines.answers import answered
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.text import TextPipeline
from maskgen.recipes.schema import Recipe

from .metric import METRICS, metric
from .pictures import check_writable

BATCH = 64


@METRICS.register("exact-match")
@metric("text")
def run(
    source: str,
    /,
    *,
    file: str | None = None,
    split: str = "test",
    new_tokens: int | None = None,
    num: int | None = None,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
    **choices: Any,
) -> str:
    """Share of generated answers that equal those of a .jsonl, or of the checkpoint's own held-out answers.

    Raises:
        UserError: a checkpoint, file, sampler or output that cannot be used.
    """
    path = check_writable(output, (".json",)) if output else None
    checkpoint = read_checkpoint(source)
    data = _data(checkpoint.recipe, file)
    pipeline = TextPipeline(checkpoint, pick_device(device))
    generator, tokenizer = pipeline.with_sampler(**choices), pipeline.tokenizer
    exchanges = list(data.exchanges("train" if file else split))[:num]
    if not exchanges:
        raise UserError(f"--split {split}: {data.name} has no answer there; use another split, or --file")
    prompts = [prompt_tokens(data, tokenizer, one) for one in exchanges]
    longest = max(len(tokenizer.encode_after(one.answer)) for one in exchanges)
    with tqdm(total=len(prompts), desc="answers", unit="answer", disable=None) as bar:
        found = answered(pipeline, generator, prompts, new_tokens or longest + 1, seed, BATCH, bar.update)
    hits = [one.text.strip() == right.answer.strip() for one, right in zip(found, exchanges, strict=True)]
    made: Made = {"seed": seed, "sampler": {"checkpoint": source, **settings_of(generator)}}
    name = data.name if file else f"{data.name} {split}"
    entries = [
        _share("exact_match", name, hits, made),
        _share("ended", name, [one.is_ended for one in found], made),
    ]
    return publish(Report(entries[0], others=entries[1:]), path)


def _data(recipe: Recipe, file: str | None) -> Conversations:
    """The conversations of a file, written as the checkpoint's own are; or these."""
    own = recipe.build_text() if file is None or recipe.has_answers else None
    if file is None:
        if not isinstance(own, Conversations):
            raise UserError(
                "--metric exact-match needs --file CONVERSATIONS.jsonl: this checkpoint was trained on no such"
            )
        return own
    chat, separator = (own.chat, own.separator) if isinstance(own, Conversations) else (None, "")
    return Conversations(file, chat=chat, separator=separator, validation_fraction=0, test_fraction=0)


def _share(name: str, of: str, hits: list[bool], made: Made) -> Entry:
    value, n = sum(hits) / len(hits), len(hits)
    error = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None
    return Entry(name, of, value, n, standard_error=error, **made)
