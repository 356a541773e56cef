"""Rows of a prompt and an answer, as tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgen.data.base import DataError, TextSource
from maskgen.data.text.conversations import Conversations, Exchange
from maskgen.data.text.rows import TextData, text_data
from maskgen.tokenizers.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class AnswerData(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a prompt and an answer, held in memory; the label of a row is the number of tokens of its prompt.

    Args:
        rows: tokens (n,) of each row, prompt and answer with the token that ends it.
        n_prompt: tokens of the prompt of each.
        filler: token that rows are filled with.
        length: of all rows; None for the longest of those read together.
        fingerprint: of the text.
    """

    def __init__(
        self, rows: Sequence[Tensor], n_prompt: Sequence[int], filler: int, length: int | None, fingerprint: str = ""
    ) -> None:
        self.n_prompt, self.filler, self.length = torch.tensor(n_prompt, dtype=torch.int64), filler, length
        self.sizes = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        self.ends = self.sizes.cumsum(0)
        self.tokens = torch.cat([torch.empty(0, dtype=torch.int32), *(row.int() for row in rows)])
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64 and prompt length () int64."""
        tokens, n_prompt = self.__getitems__([range(len(self))[index]])
        return tokens[0], n_prompt[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 and prompt lengths (B,) int64."""
        index = torch.as_tensor(list(indices), dtype=torch.int64)
        sizes, ends = self.sizes[index], self.ends[index]
        length = (int(sizes.max()) if len(sizes) else 0) if self.length is None else self.length
        place = torch.arange(length)[None]
        is_there = place < sizes[:, None]
        source = torch.where(is_there, ends[:, None] - sizes[:, None] + place, 0)
        return torch.where(is_there, self.tokens[source].long(), self.filler), self.n_prompt[index]


def answer_data(source: Conversations, split: str, tokenizer: TextTokenizer) -> AnswerData:
    """The rows of a split.

    Raises:
        DataError: no row of at most `length` tokens for training, or no token that ends an answer.
        TokenizerError: a character without a token, or a conversation that the chat template refuses.
    """
    end = ending(source, tokenizer)
    rows, n_prompt, n_long = [], [], 0
    for exchange in source.exchanges(split):
        prompt = prompt_tokens(source, tokenizer, exchange)
        row = torch.cat([prompt, tokenizer.encode_after(exchange.answer), torch.tensor([end])])
        if len(row) > source.length:
            n_long += 1
            continue
        rows.append(row)
        n_prompt.append(len(prompt))
    if n_long:
        log.warning("%s, %s: %d rows are longer than data.length %d and left out", source.name, split, n_long,
                    source.length)  # fmt: skip
    if split == "train" and not rows:
        raise DataError(f"the train split of {source.name} has no row of at most {source.length} tokens; raise length")
    filler = end if tokenizer.eos is None or tokenizer.eos not in tokenizer.specials.stop else tokenizer.eos
    length = source.length if source.padding == "row" else None
    return AnswerData(rows, n_prompt, filler, length, source.fingerprint(split))


def prompt_tokens(source: Conversations, tokenizer: TextTokenizer, exchange: Exchange) -> Tensor:
    """(P,) int64, all tokens before an answer.

    Raises:
        DataError: a conversation of several turns without a chat template and separator.
    """
    if is_chat(source, tokenizer):
        return tokenizer.encode_chat(exchange.turns)
    prompt = exchange.prompt
    if not isinstance(prompt, str):
        if not source.separator:
            raise DataError(
                f"{source.name} has messages, and the tokenizer no chat template: set data.separator, which is then "
                "written between turns"
            )
        prompt = source.separator.join(turn["content"] for turn in prompt)
    prefix = torch.tensor(tokenizer.specials.prefix, dtype=torch.int64)
    return torch.cat([prefix, tokenizer.encode(prompt + source.separator)])


def is_chat(source: Conversations, tokenizer: TextTokenizer) -> bool:
    """Whether prompts are written in the layout of a chat template."""
    return bool(tokenizer.specials.chat_template) if source.chat is None else source.chat


def ending(source: Conversations, tokenizer: TextTokenizer) -> int:
    """The token that ends an answer: that of a turn of the chat template, or of a document.

    Raises:
        DataError: none.
    """
    end = tokenizer.end_of_turn() if is_chat(source, tokenizer) else tokenizer.eos
    end = tokenizer.eos if end is None else end
    if end is None:
        raise DataError("the tokenizer has no token to end an answer with; set tokenizer.eos")
    return end


def text_rows(source: TextSource, split: str, tokenizer: TextTokenizer, progress: bool = True) -> TextData | AnswerData:
    """The rows of a split that a network is trained on: pieces of documents, or prompts with answers.

    Raises:
        DataError: see `text_data` and `answer_data`.
    """
    if isinstance(source, Conversations):
        return answer_data(source, split, tokenizer)
    return text_data(source, split, tokenizer, progress=progress)
