"""Answers to many prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.pipelines.generator import Generator
from maskgen.pipelines.text import TextPipeline
from maskgen.samplers.masked.ending import end_of_text


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text up to its end, its tokens, and whether it ended within them."""

    text: str
    tokens: Tensor
    is_ended: bool


def answered(
    pipeline: TextPipeline,
    generator: Generator,
    prompts: Sequence[Tensor],
    new_tokens: int,
    seed: int = 0,
    batch_size: int = 32,
    on_done: Callable[[int], object] = lambda _: None,
) -> list[Answer]:
    """An answer to each prompt, in order; that of prompt i depends on the prompt and on `seed` + i only.

    Args:
        pipeline: of the checkpoint.
        generator: with the sampler.
        prompts: (P,) int64 each. Those of one length are decoded together.
        new_tokens: of an answer, the token that ends it included.
        seed: of the first answer.
        batch_size: prompts decoded together.
        on_done: called with the number of answers after each batch.
    """
    of_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        of_length[len(prompt)].append(index)
    found: dict[int, Answer] = {}
    stop = pipeline.tokenizer.specials.stop
    for n_prompt, rows in of_length.items():
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            given = torch.stack([prompts[row] for row in some])
            known = torch.cat([given, torch.full((len(some), new_tokens), -1)], 1)
            (tokens,) = pipeline.draw(
                generator, len(some), known, seed=[seed + row for row in some], batch_size=len(some)
            )
            ends = end_of_text(tokens, known < 0, stop).tolist()
            for row, x, end in zip(some, tokens, ends, strict=True):
                text = pipeline.tokenizer.decode(x[n_prompt:end])
                found[row] = Answer(text, x[n_prompt:], end < len(x))
            on_done(len(some))
    return [found[index] for index in range(len(prompts))]
