"""Prompts with the answers that a model is to give, from a .jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from maskgen.core.files import local_path, numbered_lines
from maskgen.core.terminal import printable
from maskgen.data.base import DATASETS, TEXT_SPLITS, DataError, TextSource
from maskgen.tokenizers.text.specials import Message

Padding = Literal["batch", "row"]

EXAMPLE = '{"prompt": "2 + 3 =", "response": "5"} or {"messages": [{"role": "user", "content": "2 + 3 ="}, ...]}'


@dataclass(frozen=True)
class Exchange:
    """An answer and what comes before it: a text, or the turns of a conversation."""

    prompt: str | tuple[Message, ...]
    answer: str

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation before the answer."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt


@DATASETS.register("conversations")
class Conversations(TextSource):
    """Instruction tuning: rows of a prompt, which is never masked, and an answer (LLaDA, arXiv 2502.09992, 2.3).

    A line of the file is an object with `prompt` and `response`, or with `messages`, a list of `role` and `content`. A
    conversation has a row for each turn of the assistant, with all turns before it as the prompt. Splits are
    contiguous parts of the lines. Rows longer than `length` are left out, and counted at the start of a run.

    Args:
        path: the .jsonl.
        length: most tokens in a row.
        padding: rows are filled with the token that ends an answer, which is learned: up to the longest row of the
            `batch` (LLaDA), or each `row` to `length`.
        chat: write prompts in the layout of the tokenizer's chat template; null if it has one.
        separator: what stands between turns without a chat template.
        validation_fraction, test_fraction: shares of the lines.
    """

    locations: ClassVar[tuple[str, ...]] = ("path",)
    has_answers: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        length: int = 256,
        padding: Padding = "batch",
        chat: bool | None = None,
        separator: str = "",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        super().__init__(length, None, validation_fraction, test_fraction)
        self.path = local_path(path)
        if not path or not self.path.is_file():
            raise DataError(f"no file {path!r} of conversations; give a .jsonl, a line is {EXAMPLE}")
        self.name = printable(self.path.name)
        self.padding, self.chat, self.separator = padding, chat, separator

    def exchanges(self, split: str) -> Iterator[Exchange]:
        """The rows of a split, in order.

        Raises:
            DataError: unknown split, or a line that is no conversation; the message says which.
        """
        first, last = self._range(split)
        for number, line in self._lines[first:last]:
            yield from read_exchanges(line, f"{self.path}, line {number}")

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256(repr((self.chat, self.separator)).encode())
        for exchange in self.exchanges(split):
            raw = json.dumps([list(map(dict, exchange.turns)), exchange.answer]).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()

    def report(self) -> list[str]:
        sizes = {split: sum(1 for _ in self.exchanges(split)) for split in TEXT_SPLITS}
        return [f"data {self.name}: {', '.join(f'{n:,} {split}' for split, n in sizes.items())} answers"]

    @cached_property
    def _lines(self) -> list[tuple[int, str]]:
        try:
            return numbered_lines(self.path)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}; a line is {EXAMPLE}") from None

    def _size(self) -> int:
        return len(self._lines)

    def _part(self, first: int, last: int) -> Iterator[str]:
        """All text of each answer and its prompt, for a tokenizer that learns from it."""
        for number, line in self._lines[first:last]:
            for exchange in read_exchanges(line, f"{self.path}, line {number}"):
                yield self.separator.join([*(turn["content"] for turn in exchange.turns), exchange.answer])


def read_exchanges(line: str, where: str) -> list[Exchange]:
    """The answers of a line: one of `prompt` and `response`, or each turn of the assistant in `messages`.

    Raises:
        DataError: it is neither, or has no answer.
    """
    try:
        tree = json.loads(line)
    except ValueError:
        raise DataError(f"{where}: not JSON; write {EXAMPLE}") from None
    if isinstance(tree, Mapping) and "messages" in tree:
        return _turns(tree["messages"], where)
    pair = [tree.get(key) for key in ("prompt", "response")] if isinstance(tree, Mapping) else [None]
    if not all(isinstance(text, str) for text in pair):
        raise DataError(f"{where}: needs texts prompt and response, or messages; write {EXAMPLE}")
    prompt, answer = map(str, pair)
    return [Exchange(prompt, answer)]


def _turns(messages: object, where: str) -> list[Exchange]:
    turns: list[Message] = []
    found = []
    for message in messages if isinstance(messages, list) else [None]:
        parts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(text, str) for text in parts):
            raise DataError(f"{where}: each of messages needs the texts role and content; write {EXAMPLE}")
        role, content = map(str, parts)
        if role == "assistant":
            found.append(Exchange(tuple(turns), content))
        turns.append({"role": role, "content": content})
    if not found or not all(exchange.prompt for exchange in found):
        raise DataError(f"{where}: messages need a turn of the assistant, and another one before it")
    return found
