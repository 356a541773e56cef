"""Text from a checkpoint: free, after a prompt, or into the gaps of a text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError
from maskgen.core.errors import UserError
from maskgen.core.traits import traits_of
from maskgen.pipelines.arguments import n_batches, optional_text, seeds_of, slices, whole_number, wrong_type
from maskgen.pipelines.base import Pipeline, SamplerLike
from maskgen.pipelines.gaps import with_lengths
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.outputs import TextOutput, TextStep
from maskgen.pipelines.watch import Progress, ProgressBar, UnmaskingOrder, both, steps_of
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.loop import OnStep
from maskgen.tokenizers.text.gapped import GAP, gapped_tokens
from maskgen.tokenizers.text.specials import Message
from maskgen.tokenizers.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """What is to be generated.

    Attributes:
        known: given tokens (1, L) or (N, L) int64, -1 elsewhere, or None.
        length: of a text.
        is_answer: the text is the answer alone.
    """

    known: Tensor | None
    length: int | None
    is_answer: bool = False


class Given(NamedTuple):
    """What a call is given: see `TextPipeline.__call__`."""

    length: int | None = None
    prompt: str | None = None
    infill: str | None = None
    messages: Sequence[Message] | None = None
    new_tokens: int | None = None
    known: Tensor | None = None


class TextPipeline(Pipeline):
    """Samples text: `maskgen.load("kjv-md4")(num=2, prompt="In the beginning").texts`."""

    def _check_kind(self, checkpoint: Checkpoint) -> None:
        if checkpoint.recipe.kind != "text":
            raise CheckpointError(f"{checkpoint.path} generates images, not text; use maskgen.load_image")

    @property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer."""
        assert isinstance(self.generator.tokenizer, TextTokenizer)
        return self.generator.tokenizer

    def _contents(self) -> str:
        return f"texts of {self.generator.length} tokens, vocabulary {self.tokenizer.vocab_size}"

    def _check_guidance(self) -> None:
        traits = traits_of(self.model)
        if traits.is_autoregressive or traits.block_length is not None:
            raise UserError(
                "guidance masks the prompt, and this checkpoint generates from left to right: it has not seen gaps "
                "before a text; use a bidirectional one (mdlm)"
            )

    def known(self, length: int, prompt: str | None = None, infill: str | None = None) -> Tensor | None:
        """(1, L) int64 of given tokens, -1 for tokens to generate; None without prompt and infill.

        Args:
            length: L at least; a longer infill is not cut.
            prompt: text at the beginning.
            infill: a text in which every `_` is a token to generate, like all tokens between its end and L.

        Raises:
            UserError: both, no room for a token, or text outside the tokenizer's vocabulary.
        """
        _require_one(prompt, infill)
        if prompt is None and infill is None:
            return None
        if infill is not None and GAP not in infill:
            raise UserError(f"infill {infill!r} has no gap; write {GAP} for every token to generate")
        given = self._tokens(prompt if prompt is not None else infill or "", has_gaps=infill is not None)
        return self._opened(given, length, is_whole=infill is not None)

    def with_lengths(self, infill: str) -> str:
        """An infill whose gaps of unknown length have become the number of `_` that fits best, see `gaps`."""
        return with_lengths(
            infill, lambda text: self._tokens(text, has_gaps=True), self.model, self.tokenizer.vocab_size
        )

    def _opened(self, given: Tensor, length: int, *, is_whole: bool = False) -> Tensor:
        """(1, L) int64: given tokens, then tokens to generate; a whole text may end with the given ones."""
        if not is_whole and len(given) >= length:
            raise UserError(f"the prompt has {len(given)} tokens and length is {length}: nothing is left to write")
        return torch.cat([given, given.new_full((max(length - len(given), 0),), -1)])[None]

    def _tokens(self, text: str, *, has_gaps: bool) -> Tensor:
        """(N,) int64 of a text, with its prefix, -1 in gaps."""
        prefix = torch.tensor(self.tokenizer.specials.prefix, dtype=torch.int64)
        own = gapped_tokens(self.tokenizer, text) if has_gaps else self.tokenizer.encode(text)
        return torch.cat([prefix, own])

    def __call__(
        self,
        num: int | None = None,
        length: int | None = None,
        *,
        prompt: str | None = None,
        infill: str | None = None,
        messages: Sequence[Message] | None = None,
        new_tokens: int | None = None,
        known: Tensor | None = None,
        sampler: SamplerLike | None = None,
        guidance: float | Guidance | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        progress: Progress = False,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> TextOutput:
        """Draw texts; each depends on its own seed and on its given tokens alone, not on the batch.

        Args:
            num: how many; 4 by default, or one a seed of a list.
            length: tokens; as in training by default, or of an infill.
            prompt, infill: text at the beginning; or a text with a `_` for each token to generate; `_{3,9}`: the best.
            messages: a conversation, `[{"role": "user", "content": "..."}]`; the texts are answers.
            new_tokens: tokens after prompt or messages, in place of length.
            known: (num, L) or (1, L) int64 of given tokens, -1 elsewhere, in place of prompt, infill and length.
            sampler: a preset (`maskgen samplers`) or a sampler; the pipeline's own by default.
            guidance: scale of guidance by the given tokens, 1 is off, see `Guidance`; LLaDA's `cfg_scale` + 1.
            seed: of text 0, text i has `seed + i`; or a list with a seed for each text.
            batch_size, progress, on_step: see `ImagePipeline`.
            **arguments: of the sampler: `steps`, `temperature`, `top_p`, ...
        """
        generator = self.with_sampler(sampler, guidance, **arguments)
        seeds, num = seeds_of(seed, num, 4)
        given = self._request(Given(length, prompt, infill, messages, new_tokens, known))
        with ProgressBar(progress, n_batches(num, batch_size)) as bar:
            batches = list(self._draw(generator, seeds, given, batch_size, both(bar, on_step)))
        tokens, orders = (torch.cat(column) for column in zip(*batches, strict=True))
        return TextOutput(generator.texts(tokens, given.known, given.is_answer), tokens, tuple(seeds), orders)

    def stream(
        self,
        num: int | None = None,
        length: int | None = None,
        *,
        prompt: str | None = None,
        infill: str | None = None,
        known: Tensor | None = None,
        sampler: SamplerLike | None = None,
        seed: int | Sequence[int] = 0,
        **arguments: Any,
    ) -> Iterator[TextStep]:
        """(step, tokens, texts) after each step of a decoding of all texts in one batch; arguments as for a call."""
        generator = self.with_sampler(sampler, **arguments)
        seeds, num = seeds_of(seed, num, 4)
        given = self._request(Given(length, prompt, infill, known=known))

        def decode(on_step: OnStep) -> Tensor:
            return next(iter(self._draw(generator, seeds, given, num, on_step)))[0]

        return self._steps(generator, decode)

    def _steps(self, generator: Generator, decode: Callable[[OnStep], Tensor]) -> Iterator[TextStep]:
        """The steps of a decoding as texts."""
        for step, x_t in steps_of(decode):
            yield TextStep(step, x_t.cpu(), generator.texts(x_t))

    def _request(self, given: Given) -> Request:
        """What a call generates.

        Raises:
            UserError: wrong types, or arguments that exclude each other.
        """
        _check_given(given)
        if given.known is not None:
            return Request(given.known, given.length)
        if given.infill is not None:
            return Request(self.known(given.length or 0, infill=self.with_lengths(given.infill)), given.length)
        start = self._beginning(given)
        if start is None:
            return Request(None, given.new_tokens or given.length)
        length = given.length or self.generator.length
        if given.new_tokens is not None:
            length = len(start) + given.new_tokens
        return Request(self._opened(start, length), length, is_answer=given.messages is not None)

    def _beginning(self, given: Given) -> Tensor | None:
        """(N,) int64, the tokens that a text begins with; None without."""
        if given.messages is not None:
            return self.tokenizer.encode_chat(given.messages)
        if given.prompt is not None or self.tokenizer.specials.prefix:
            return self._tokens(given.prompt or "", has_gaps=False)
        return None

    def draw(
        self,
        generator: Generator,
        num: int,
        known: Tensor | None = None,
        length: int | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Tokens (B, L) of `num` texts on the CPU, batch by batch."""
        seeds, _ = seeds_of(seed, num, num)
        return (batch[0] for batch in self._draw(generator, seeds, Request(known, length), batch_size, on_step))

    def _draw(
        self, generator: Generator, seeds: Sequence[int], given: Request, batch_size: int, on_step: OnStep | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, L) and unmasking steps (B, L) of a text for each seed on the CPU, batch by batch."""
        known, length, num = given.known, given.length, len(seeds)
        if known is not None:
            self._check_known(known, num)
            length, known = known.shape[1], known.expand(num, -1)
        if generator.guidance.scale != 1 and (known is None or not (known >= 0).any()):
            raise UserError("guidance of a text is by what it is given: a prompt, a message or an infill; or use 1")
        if length is not None:
            self._check_length(length)
            generator = replace(generator, length=whole_number("length", length, 1))
        for rows in slices(num, batch_size):
            some = None if known is None else known[rows]
            order = UnmaskingOrder(self.tokenizer.vocab_size, some)
            with self._computing():
                tokens = generator.tokens(seeds[rows], known=some, on_step=both(order, on_step))
            yield tokens.cpu(), order.steps(tokens)

    def _check_length(self, length: int) -> None:
        """Check the number of tokens to generate against a network for rows of one length; a longer one is said.

        Raises:
            UserError: another length; a longer one for a network that generates from left to right.
        """
        traits, trained = traits_of(self.generator.denoiser), self.generator.length
        is_fit = length <= trained if traits.is_autoregressive else length == trained
        if traits.has_fixed_grid and not is_fit:
            most = "at most " if traits.is_autoregressive else ""
            raise UserError(
                f"this checkpoint is for texts of {most}{trained} tokens, its mixer has no others; got {length}"
            )
        if length > trained:
            _say_longer(length, trained)

    def _check_known(self, known: Tensor, num: int) -> None:
        size = self.tokenizer.vocab_size
        if known.ndim != 2 or len(known) not in (1, num) or not known.numel() or int(known.max()) >= size:
            raise UserError(
                f"known must be ({num}, L) or (1, L) tokens, 0 to {size - 1} and -1 for tokens to generate, got "
                f"{tuple(known.shape)} up to {int(known.max()) if known.numel() else 'none'}"
            )


def _require_one(prompt: str | None, infill: str | None) -> None:
    """Check that a prompt and an infill are not both given.

    Raises:
        UserError: they are.
    """
    if prompt is not None and infill is not None:
        raise UserError("give a prompt or an infill, not both: an infill may begin with the prompt")


def _check_given(given: Given) -> None:
    """Check types, and that no two arguments contradict each other.

    Raises:
        UserError: one is wrong.
    """
    for name, count in (("length", given.length), ("new_tokens", given.new_tokens)):
        if count is not None:
            whole_number(name, count, 1)
    optional_text("prompt", given.prompt)
    optional_text("infill", given.infill)
    if given.known is not None:
        if not isinstance(given.known, Tensor) or given.known.is_floating_point():
            raise wrong_type("known", given.known, "an int64 tensor of tokens")
        others = (given.prompt, given.infill, given.messages, given.new_tokens)
        if any(one is not None for one in others) or given.length not in (None, given.known.shape[-1]):
            raise UserError("known already gives the tokens and the length; leave out prompt, infill and length")
    _require_one(given.prompt, given.infill)
    if given.messages is not None and not (given.prompt is None and given.infill is None):
        raise UserError("messages are a whole conversation; leave out prompt and infill")
    if given.new_tokens is not None and (given.length is not None or given.infill is not None):
        raise UserError("new_tokens counts tokens after a prompt; leave out length and infill")


@cache
def _say_longer(length: int, trained: int) -> None:
    log.warning("length %d: this checkpoint was trained on rows of %d tokens and has seen none longer", length, trained)
