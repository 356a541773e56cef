"""Tokens of a text data set: encoded once, stored on disk, read as rows of one length."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgen.core.predictions import NULL
from maskgen.data.base import DataError, TextSource
from maskgen.data.cache import FORMAT, cached, token_dtype, write_tokens
from maskgen.tokenizers.text.tokenizer import TextTokenizer, TokenizerError

Separator = Literal["eos", "newline", "none"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedText:
    """A file of tokens, one document after the other, with the size of its text.

    `characters` and `n_bytes` (UTF-8), the denominators of bits per character and per byte, count the documents and
    newlines put between them, not tokens that end a document. `documents` is true if there are such tokens;
    `fingerprint` is that of the text.
    """

    file: Path
    dtype: str
    tokens: int
    characters: int
    n_bytes: int
    documents: bool
    fingerprint: str


class TextData(Dataset[tuple[Tensor, Tensor]]):
    """Rows of `length` tokens of a memory-mapped file, one every `stride`; labels are `NULL`.

    `tail` (R,) int64, R < L, are the tokens after the last row if rows do not overlap, else none.
    """

    def __init__(self, packed: PackedText, length: int, stride: int) -> None:
        self.packed, self.length, self.stride = packed, length, stride
        self.tokens, self.characters, self.n_bytes = packed.tokens, packed.characters, packed.n_bytes
        self.documents, self.fingerprint = packed.documents, packed.fingerprint
        self._n_rows = max(0, (packed.tokens - length) // stride + 1)
        self._tokens = np.memmap(packed.file, packed.dtype, mode="r", shape=(packed.tokens,))

    @property
    def tail(self) -> Tensor:
        first = len(self) * self.length if self.stride == self.length else self.tokens
        return torch.from_numpy(self._tokens[first:].astype(np.int64))

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64 and label () int64."""
        tokens, labels = self.__getitems__([range(len(self))[index]])
        return tokens[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 and labels (B,) int64."""
        places = np.asarray(indices, dtype=np.int64)[:, None] * self.stride + np.arange(self.length)
        tokens = torch.from_numpy(self._tokens[places].astype(np.int64))
        return tokens, torch.full((len(tokens),), NULL, dtype=torch.int64)

    def __reduce__(self) -> tuple[object, ...]:
        return TextData, (self.packed, self.length, self.stride)  # workers map the file, not copy it


def text_data(
    source: TextSource, split: str, tokenizer: TextTokenizer, cache_dir: Path | None = None, progress: bool = True
) -> TextData:
    """The tokens of a split, from the cache, or encoded and stored.

    Documents follow one another, each with the tokenizer's `eos` after it, or a newline if there is no `eos`. A source
    of one text has neither. Only training rows may overlap.

    Raises:
        DataError: no text, too little for one training row, a tokenizer with neither `eos` nor newline, or a cache
            directory that cannot be written.
        DiskFull: no room for the tokens.
        TokenizerError: a character that the tokenizer has no token for.
    """
    separator = _separator(source, tokenizer)
    header: dict[str, Any] = {
        "format": FORMAT,
        "data": source.fingerprint(split),
        "tokenizer": tokenizer.fingerprint(),
        "dtype": token_dtype(tokenizer.vocab_size),
        "rows": 1,
        "separator": separator,
    }
    file, found = cached(
        header, cache_dir, lambda file: _encode(file, source, split, tokenizer, separator, header["dtype"], progress)
    )
    stride = source.stride if split == "train" and source.stride is not None else source.length
    sizes = (found["dtype"], found["length"], found["characters"], found["n_bytes"])
    packed = PackedText(file, *sizes, separator == "eos", header["data"])
    data = TextData(packed, source.length, stride)
    if split == "train" and not len(data):
        raise DataError(
            f"the train split of {source.name} has {data.tokens} tokens, less than a row of {data.length}; "
            "choose a smaller length or more text"
        )
    return data


def document_ids(tokens: Tensor, eos: int) -> Tensor:
    """Tokens (B, L) -> index (B, L) int64 of each token's document in its row; `eos` belongs to the one it ends."""
    is_end = (tokens == eos).long()
    return is_end.cumsum(-1) - is_end


def _separator(source: TextSource, tokenizer: TextTokenizer) -> Separator:
    """What follows each document."""
    if source.is_one_text:
        return "none"
    if tokenizer.eos is not None:
        return "eos"
    try:
        has_newline = tokenizer.decode(tokenizer.encode("\n")) == "\n"
    except TokenizerError:
        has_newline = False
    if not has_newline:
        raise DataError(
            f"the tokenizer has no token to separate the documents of {source.name}; set tokenizer.eos=true"
        )
    log.warning("the tokenizer has no token that ends a document: those of %s are joined by newlines", source.name)
    return "newline"


def _encode(
    file: Path,
    source: TextSource,
    split: str,
    tokenizer: TextTokenizer,
    separator: Separator,
    dtype: str,
    progress: bool,
) -> dict[str, int]:
    """Encode and write the tokens; returns their number, characters and bytes of the text, and a checksum."""
    log.info("encoding the %s split of %s into %s", split, source.name, file)
    facts = {"length": 0, "characters": 0, "n_bytes": 0}

    def batches() -> Iterator[Tensor]:
        with tqdm(desc="tokens", unit="character", unit_scale=True, disable=not progress) as bar:
            for text, tokens in _tokens(source.documents(split), tokenizer, separator):
                facts["length"] += len(tokens)
                facts["characters"] += len(text)
                facts["n_bytes"] += len(text.encode())
                yield tokens
                bar.update(len(text))
        if not facts["characters"]:
            raise DataError(
                f"the {split} split of {source.name} has no text; give it more, or change data.validation_fraction or "
                "data.test_fraction"
            )

    crc32 = write_tokens(file, batches(), dtype)
    return {**facts, "crc32": crc32}


def _tokens(documents: Iterator[str], tokenizer: TextTokenizer, separator: Separator) -> Iterator[tuple[str, Tensor]]:
    """Pieces of the documents with their tokens, the separator with the last piece of each."""
    read: deque[tuple[str, bool]] = deque()  # the tokenizer reads ahead

    def pieces() -> Iterator[str]:
        for document in documents:
            whole = document + "\n" if separator == "newline" else document
            *first, last = tokenizer.pieces(whole) if whole else [""]
            for piece in first:
                read.append((piece, False))
                yield piece
            read.append((last, True))
            yield last

    end = torch.tensor([] if tokenizer.eos is None else [tokenizer.eos], dtype=torch.int64)
    for tokens in tokenizer.encode_all(pieces()):
        text, is_last = read.popleft()
        yield text, torch.cat([tokens, end]) if is_last and separator == "eos" else tokens
