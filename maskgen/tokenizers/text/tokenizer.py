"""Text tokenizers: text <-> tokens in a row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic
from maskgen.core.terminal import first_few, printable
from maskgen.tokenizers.text.cuts import cut_of, pieces
from maskgen.tokenizers.text.specials import CONFIG, Message, Specials, end_of_turn, rendered

EOS = "<|endoftext|>"
BATCH = 2**20
SPACES = "\u0120\u2581"
"""How byte-level BPE and SentencePiece write a space."""
_MASK = "\uffff"  # not a character, so no tokenizer has it

# Loaders fork after texts were encoded in threads; unless this is set, each fork prints a warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class TokenizerError(UserError):
    """A text that a tokenizer cannot encode, or a tokenizer that cannot be loaded."""


class TextTokenizer:
    """Text <-> tokens (N,) int64 in 0..vocab_size - 1, by a tokenizer of Hugging Face's `tokenizers`.

    Only the text is encoded: no token is added around it, and the name of a special token in the text is plain text.
    Decoding inverts encoding, up to the normalisation (lower case, say) of tokenizers that have one.

    Args:
        tokenizer: copied, without truncation, padding and post-processing.
        eos: the token that ends a document.
        specials: roles of its special tokens.

    Raises:
        TokenizerError: the tokenizer has no such token.
    """

    def __init__(self, tokenizer: Tokenizer, eos: str | None = None, specials: Specials = Specials()) -> None:
        spec: dict[str, Any] = json.loads(tokenizer.to_str())
        if "dropout" in spec["model"]:
            spec["model"]["dropout"] = None  # merges left out at random are for training, with another stream than ours
        number = tokenizer.get_vocab(with_added_tokens=True)
        if eos is not None and eos not in number:
            raise TokenizerError(f"the tokenizer has no token {eos!r} to end a document with; name one that it has")
        self.vocab_size = max(specials.vocab_size, max(number.values(), default=-1) + 1)
        self.specials = specials
        self.eos = None if eos is None else number[eos]
        self._names = ["\ufffd"] * self.vocab_size
        for name, token in number.items():
            self._names[token] = name if token != self.eos else "\n"
        ending = None if eos is None else _ending(eos, number[eos])
        self._tokenizer = Tokenizer.from_str(json.dumps(spec | {"post_processor": ending}))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._alphabet = {name for name in number if len(name) == 1} if _drops_unknown(spec) else None
        self._unknown = _unknown_token(spec["model"], number)
        self._cut = cut_of(spec)

    def encode(self, text: str) -> Tensor:
        """(N,) int64.

        Raises:
            TokenizerError: a character that the vocabulary has no token for.
        """
        return torch.cat([torch.empty(0, dtype=torch.int64), *self.encode_all(self.pieces(text))])

    def encode_after(self, text: str) -> Tensor:
        """(N,) int64 of a text that goes on from another one: without the space that some tokenizers put in front.

        Raises:
            TokenizerError: see `encode`.
        """
        if not text or self._anchor is None:
            return self.encode(text)
        return self.encode(self._anchor + text)[len(self.encode(self._anchor)) :]

    @cached_property
    def _anchor(self) -> str | None:
        """A text that no token joins to what follows, if a tokenizer encodes the beginning of a text differently."""
        for anchor in ("\n", ":"):
            try:
                before, alone, both = (self.encode(text).tolist() for text in (anchor, "a", f"{anchor}a"))
            except TokenizerError:
                continue
            if both[: len(before)] == before:
                return None if both[len(before) :] == alone else anchor
        return None

    @cached_property
    def joins_space(self) -> bool:
        """Whether a word and the space before it are one token, as byte-level BPE and SentencePiece write it."""
        return any(len(name) > 1 and name[0] in SPACES and name[1].isalpha() for name in self.token_names())

    def end_of_turn(self) -> int | None:
        """The special token that ends an answer in the chat template; None without."""
        template = self.specials.chat_template
        return end_of_turn(self._tokenizer, template) if template else None

    def stopping_at_eos(self) -> TextTokenizer:
        """The tokenizer whose texts end where a document does; itself if there is no such token, or they do already."""
        if self.eos is None or self.eos in self.specials.stop:
            return self
        allowed = tuple(token for token in self.specials.forbidden if token != self.eos)
        specials = replace(self.specials, stop=(*self.specials.stop, self.eos), forbidden=allowed)
        return TextTokenizer(self._tokenizer, self._tokenizer.id_to_token(self.eos), specials)

    def encode_all(self, texts: Iterable[str]) -> Iterator[Tensor]:
        """(N,) int64 of each text, in order; about a million characters are held at a time.

        Raises:
            TokenizerError: see `encode`.
        """
        for batch in _batches(texts):
            self._refuse_outside_alphabet(batch)
            try:
                encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            except Exception as error:  # the library has no type of its own
                raise TokenizerError(f"the tokenizer can't encode the text: {first_line(error)}") from None
            for text, encoding in zip(batch, encodings, strict=True):
                if self._unknown is not None and self._unknown in encoding.ids:
                    self._refuse_unknown(text)
                yield torch.tensor(encoding.ids, dtype=torch.int64)

    def pieces(self, text: str) -> Iterator[str]:
        """A text in parts whose tokens, one after the other, are its own: what keeps a long text out of memory.

        Tokenizers of single characters or bytes are cut anywhere, byte-level BPE before a space that follows a word;
        a text for any other tokenizer stays whole.
        """
        return pieces(text, self._cut)

    def encode_chat(self, messages: Sequence[Message]) -> Tensor:
        """(N,) int64: a conversation in the layout of the chat template, up to where the answer begins.

        Raises:
            TokenizerError: no chat template, or a message with the name of a special token.
        """
        if not self.specials.chat_template:
            raise TokenizerError("this tokenizer has no chat template; give a prompt, without chat")
        names = [one.content for one in self._tokenizer.get_added_tokens_decoder().values() if one.special]
        for content in (message["content"] for message in messages):
            if found := next((name for name in names if name in content), None):
                raise TokenizerError(f"a message holds the special token {found!r}, which would end it; leave it out")
        return self.encode_named(rendered(self.specials.chat_template, messages))

    def encode_named(self, text: str) -> Tensor:
        """(N,) int64 of a text in which the name of a special token stands for it."""
        self._tokenizer.encode_special_tokens = False
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, tokens: Tensor, mask: str = "_") -> str:
        """(N,) int64 -> text; the end of a document becomes a newline, a number outside the vocabulary `mask`."""
        names = [self._names[token] if 0 <= token < self.vocab_size else _MASK for token in tokens.tolist()]
        decoder = self._tokenizer.decoder
        text = " ".join(names) if decoder is None else str(decoder.decode(names))
        return text.replace(_MASK, mask) if _MASK in names else text

    def token_names(self) -> list[str]:
        """The tokens as the vocabulary writes them, by number; a number without a token has its own as a name."""
        names = [f"<|{token}|>" for token in range(self.vocab_size)]
        for name, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
            names[token] = name
        return names

    def save(self, file: Path) -> None:
        """Write `tokenizer.json` as other programs read it; its post-processor names the token that ends a document."""
        with atomic(file) as out:
            out.write(self._tokenizer.to_str(pretty=True).encode())
        self.specials.save(file.with_name(CONFIG), self._tokenizer)

    @classmethod
    def load(cls, file: Path) -> TextTokenizer:
        """A saved tokenizer.

        Raises:
            TokenizerError: no such file, or no tokenizer in it.
        """
        tokenizer = read_tokenizer(file)
        template = (json.loads(tokenizer.to_str())["post_processor"] or {}).get("single") or [{}]
        specials = Specials.load(file.with_name(CONFIG))
        return cls(tokenizer, template[-1].get("SpecialToken", {}).get("id"), specials)

    def fingerprint(self) -> str:
        """SHA-256 of the whole tokenizer."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def _refuse_outside_alphabet(self, batch: list[str]) -> None:
        if self._alphabet is not None and (strange := set().union(*batch) - self._alphabet):
            raise _unknown(strange)

    def _refuse_unknown(self, text: str) -> None:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        raise _unknown({text[first:last] for token, (first, last) in spans if token == self._unknown})


def _drops_unknown(spec: dict[str, Any]) -> bool:
    """Whether it is a tokenizer of characters that would leave out those it does not know."""
    model = spec["model"]
    has_way_out = model.get("unk_token") is not None or model.get("byte_fallback")
    return model["type"] == "BPE" and not has_way_out and spec["pre_tokenizer"] is None and spec["normalizer"] is None


def _unknown_token(model: dict[str, Any], number: dict[str, int]) -> int | None:
    """The token that stands for what a tokenizer does not know."""
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else int(model["unk_id"])
    return number.get(model.get("unk_token") or "")


def _unknown(strange: set[str]) -> TokenizerError:
    shown = printable(first_few([repr(text) for text in sorted(strange)]))
    return TokenizerError(
        f"the tokenizer has no token for {shown}; leave it out of the text, or choose tokenizer bytes or bpe, which "
        "encode every character"
    )


def _ending(eos: str, token: int) -> dict[str, object]:
    """The post-processor, as `tokenizer.json` writes it, that ends every document with a token."""
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, end, second, end],
        "special_tokens": {eos: {"id": eos, "ids": [token], "tokens": [eos]}},
    }


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        TokenizerError: it is missing or damaged.
    """
    if not file.is_file():
        raise TokenizerError(f"no tokenizer at {file}: there is no such file")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no type of its own
        raise TokenizerError(f"{file} is no readable tokenizer: {first_line(error)}") from None


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts with about `BATCH` characters each."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
