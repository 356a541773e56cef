"""A text checkpoint as a language model of lm-evaluation-harness (package lm-eval).

import lm_eval
from maskgen.sample.harness_model import HarnessModel

lm_eval.simple_evaluate(model=HarnessModel("kjv-md4"), tasks=["arc_easy"], limit=50)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.pipelines.answers import answered
from maskgen.pipelines.text import TextPipeline
from maskgen.samplers import MaskedSampler
from maskgen.tokenizers.text.specials import rendered

from .likelihood import schedule_of


class HarnessModel(LM):  # type: ignore[misc]  # lm-eval is read without types
    """Log-likelihoods are exact for autoregressive networks; of others, minus the bound that `answer_nll` estimates.

    A continuation is greedy if the sampler generates it at temperature 0.

    Args:
        source: a text checkpoint.
        draws: masks of each continuation (LLaDA, arXiv 2502.09992: 128).
        new_tokens: most tokens of an answer, where a task does not say.
        seed: of masks and answers.
        device: `auto`, `cpu` or `cuda`.
        **choices: sampler and its arguments.
    """

    def __init__(
        self,
        source: str,
        draws: int = 128,
        new_tokens: int = 64,
        seed: int = 0,
        device: str = "auto",
        **choices: Any,
    ) -> None:
        super().__init__()
        checkpoint = read_checkpoint(source)
        self.source, self.draws, self.new_tokens, self.seed = source, draws, new_tokens, seed
        self.pipeline = TextPipeline(checkpoint, pick_device(device))
        self.generator = self.pipeline.with_sampler(**choices)
        self.tokenizer, self.schedule = self.pipeline.tokenizer, schedule_of(checkpoint)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of a continuation after a context, and whether it is greedy."""
        pairs = [self._pair(*request.args) for request in requests]
        greedy = self._greedy(pairs)
        return [
            (-self._nats(*pair, index), bool(torch.equal(tokens, pair[1])))
            for index, (pair, tokens) in enumerate(zip(pairs, greedy, strict=True))
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of a text, in rows of the training length, each after the row before it where that fits."""
        found = []
        for index, request in enumerate(requests):
            tokens = self.tokenizer.encode(request.args[0])
            size = max(self.generator.length // 2, 1) if len(tokens) > self.generator.length else max(len(tokens), 1)
            parts = tokens.split(size)
            before = [self._prefix(), *parts[:-1]]
            found.append(-sum(self._nats(a, b, index) for a, b in zip(before, parts, strict=False) if len(b)))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers up to the first of the given texts; temperature 0 unless the task samples."""
        answers = [""] * len(requests)
        of_size: dict[tuple[int, float], list[int]] = {}
        for index, request in enumerate(requests):
            options = dict(request.args[1])
            temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
            of_size.setdefault((int(options.get("max_gen_toks", self.new_tokens)), temperature), []).append(index)
        for (size, temperature), rows in of_size.items():
            prompts = [self._context(requests[row].args[0]) for row in rows]
            generator = self._at(temperature)
            for row, answer in zip(rows, answered(self.pipeline, generator, prompts, size, self.seed), strict=True):
                answers[row] = _until(answer.text, requests[row].args[1].get("until", ()))
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, with the names of special tokens."""
        return rendered(self.tokenizer.specials.chat_template, chat_history, is_open=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer."""
        return self.tokenizer.fingerprint()

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: ARG002
        """The tokenizer's template."""
        return self.tokenizer.specials.chat_template

    def _prefix(self) -> Tensor:
        return torch.tensor(self.tokenizer.specials.prefix, dtype=torch.int64)

    def _context(self, text: str) -> Tensor:
        """Tokens of a context; one in the layout of the chat template has its special tokens."""
        if self.tokenizer.specials.chat_template:
            return self.tokenizer.encode_named(text)
        return torch.cat([self._prefix(), self.tokenizer.encode(text)])

    def _pair(self, context: str, continuation: str) -> tuple[Tensor, Tensor]:
        before = self._context(context)
        encode = self.tokenizer.encode_after if len(before) else self.tokenizer.encode
        return before, encode(continuation)

    def _nats(self, before: Tensor, answer: Tensor, index: int) -> float:
        rng, mask_id = Rng.stream(self.seed, "request", index), self.tokenizer.vocab_size
        return answer_nll(self.pipeline.model, before, answer, rng, self.draws, self.schedule, mask_id=mask_id).nats

    def _greedy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The sampler's tokens at temperature 0 in place of each continuation."""
        found: list[Tensor] = [torch.empty(0)] * len(pairs)
        generator = self._at(0.0)
        for size in {len(answer) for _, answer in pairs}:
            rows = [index for index, (_, answer) in enumerate(pairs) if len(answer) == size]
            some = answered(self.pipeline, generator, [pairs[row][0] for row in rows], size, self.seed)
            for row, one in zip(rows, some, strict=True):
                found[row] = one.tokens
        return found

    def _at(self, temperature: float) -> Any:
        assert isinstance(self.generator.sampler, MaskedSampler)
        return replace(self.generator, sampler=replace(self.generator.sampler, temperature=temperature))


def _until(text: str, ends: str | Sequence[str]) -> str:
    """The text before the first of the ends."""
    places = [text.find(end) for end in ([ends] if isinstance(ends, str) else ends) if end and end in text]
    return text[: min(places)] if places else text
