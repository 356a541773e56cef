"""Text from a checkpoint: free, after a prompt, or into the gaps of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, load_text_model
from maskgen.core.errors import UserError
from maskgen.pipelines.base import Pipeline, slices
from maskgen.pipelines.generator import Generator
from maskgen.samplers.masked.loop import OnStep
from maskgen.tokenizers.text.tokenizer import TextTokenizer

GAP = "_"
"""Stands for one token that is wanted, in the text given to `infill`."""


@dataclass(frozen=True)
class TextOutput:
    """`texts`, one a sample; `tokens` (N, L)."""

    texts: list[str]
    tokens: Tensor


class TextPipeline(Pipeline):
    """Samples text: `maskgen.load("kjv-md4")(num=2, prompt="In the beginning").texts`."""

    def _make(self, checkpoint: Checkpoint, device: torch.device) -> Generator:
        network, tokenizer = load_text_model(checkpoint)
        sampler, guidance = checkpoint.recipe.build_sampler(), checkpoint.recipe.build_guidance()
        return Generator(network, tokenizer, sampler, guidance, device, checkpoint.length)

    @property
    def tokenizer(self) -> TextTokenizer:
        assert isinstance(self.generator.tokenizer, TextTokenizer)
        return self.generator.tokenizer

    def _check_guidance(self) -> None:
        raise UserError("this checkpoint has no classes to be guided by; leave guidance out")

    def known(self, length: int, prompt: str | None = None, infill: str | None = None) -> Tensor | None:
        """(1, L) int64 of given tokens, -1 where one is wanted; None where all are.

        Args:
            length: L at least; an infill that is longer is not cut.
            prompt: text at the beginning.
            infill: a text in which every `_` is a token that is wanted; what follows it up to L is wanted too.

        Raises:
            UserError: both, no room for a token, or text that the tokenizer does not know.
        """
        if prompt is not None and infill is not None:
            raise UserError("give a prompt or an infill, not both: an infill may begin with the prompt")
        if prompt is None and infill is None:
            return None
        if infill is not None and GAP not in infill:
            raise UserError(f"infill {infill!r} has no gap; write {GAP} for every token that is wanted")
        given = self._tokens(prompt if prompt is not None else infill or "", has_gaps=infill is not None)
        if prompt is not None and len(given) >= length:
            raise UserError(f"the prompt has {len(given)} tokens and length is {length}: nothing is left to write")
        return torch.cat([given, given.new_full((max(length - len(given), 0),), -1)])[None]

    def _tokens(self, text: str, *, has_gaps: bool) -> Tensor:
        if not has_gaps:
            return self.tokenizer.encode(text)
        parts = re.split(f"({GAP}+)", text)
        return torch.cat([
            torch.full((len(part),), -1) if part.startswith(GAP) else self.tokenizer.encode(part)
            for part in parts if part
        ])  # fmt: skip

    def __call__(
        self,
        num: int = 4,
        length: int | None = None,
        *,
        prompt: str | None = None,
        infill: str | None = None,
        known: Tensor | None = None,
        sampler: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> TextOutput:
        """Draw `num` texts; text i depends on `seed + i` and what is known alone, not on the batch.

        Args:
            num: how many.
            length: tokens, as in training by default, or as long as an infill is.
            prompt: text at the beginning.
            infill: a text in which every `_` is a token that is wanted.
            known: (num, L) or (1, L) int64 of given tokens, -1 where one is wanted: a different gap for each row. It
                says the length, and goes with neither prompt nor infill.
            sampler: a preset (`maskgen samplers`), the checkpoint's own by default.
            seed: of text 0.
            batch_size: texts computed together.
            on_step: called after each step with (steps done, steps in all, tokens (B, L)).
            **arguments: of the sampler: `steps`, `temperature`, `top_p`, ...
        """
        generator = self.with_sampler(sampler, **arguments)
        _check_length(length)
        if known is not None and not (prompt is None and infill is None and length in (None, known.shape[-1])):
            raise UserError("known says all: which tokens are given, and the length; give no prompt, infill or length")
        if known is None:
            known = self.known(length or (0 if infill else generator.length), prompt, infill)
        tokens = torch.cat(list(self.draw(generator, num, known, length, seed, batch_size, on_step)))
        return TextOutput(generator.texts(tokens), tokens)

    def draw(
        self,
        generator: Generator,
        num: int,
        known: Tensor | None = None,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Tokens (B, L) of `num` texts on the CPU, batch by batch."""
        if known is not None:
            self._check_known(known, num)
            length = known.shape[1]
            known = known.expand(num, -1)
        _check_length(length)
        if length is not None:
            generator = replace(generator, length=length)
        for rows in slices(num, batch_size):
            seeds = range(seed + rows.start, seed + rows.stop)
            yield generator.tokens(seeds, known=None if known is None else known[rows], on_step=on_step).cpu()

    def _check_known(self, known: Tensor, num: int) -> None:
        size = self.tokenizer.vocab_size
        if known.ndim != 2 or len(known) not in (1, num) or not known.numel() or int(known.max()) >= size:
            raise UserError(
                f"known must be ({num}, L) or (1, L) tokens, 0 to {size - 1} and -1 where one is wanted, got "
                f"{tuple(known.shape)} up to {int(known.max()) if known.numel() else 'none'}"
            )


def _check_length(length: int | None) -> None:
    if length is not None and length < 1:
        raise UserError(f"length must be at least 1, got {length}")
