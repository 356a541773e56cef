"""Text tokenizers that are made here: characters, bytes, and byte-level BPE learned from the training documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from maskgen.core.terminal import first_few
from maskgen.tokenizers.base import TOKENIZERS
from maskgen.tokenizers.text.cuts import before_space, pieces
from maskgen.tokenizers.text.tokenizer import EOS, TextTokenizer, TokenizerError

Corpus = Callable[[], Iterator[str]]
"""Returns an iterator over documents, from the first each time it is called."""

log = logging.getLogger(__name__)


@TOKENIZERS.register("characters")
def characters(corpus: Corpus, eos: bool = False, held_out: Corpus = lambda: iter(())) -> TextTokenizer:
    """Every character of the documents, by code point; `eos` adds a token that ends a document.

    Characters of held-out documents only have a token too, which training does not see: without it these documents
    could not be scored.

    Raises:
        TokenizerError: the training documents are empty.
    """
    found = set().union(*corpus())
    if not found:
        raise TokenizerError("the training documents hold no character; give more text")
    untrained = sorted(set().union(*held_out()) - found)
    if untrained:
        shown = first_few([ascii(character) for character in untrained])
        log.warning("characters of held-out text only, not trained: %s; tokenizer bytes or bpe has none", shown)
    tokenizer = _without_merges(sorted([*found, *untrained]), eos)
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, EOS if eos else None)


@TOKENIZERS.register("bytes")
def utf8_bytes(eos: bool = False) -> TextTokenizer:
    """The 256 bytes of UTF-8, token = byte: any text; `eos` adds a token that ends a document, number 256."""
    tokenizer = _without_merges(_byte_names(), eos)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(tokenizer, EOS if eos else None)


@TOKENIZERS.register("bpe")
def bpe(corpus: Corpus, vocab_size: int = 4096, eos: bool = True) -> TextTokenizer:
    """Byte-level BPE (Radford et al. 2019) learned from the training documents: any text.

    Args:
        vocab_size: tokens in all; fewer come of a corpus that has not so many pairs.
        eos: add a token that ends a document.
    """
    special = [EOS] if eos else []
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size must be at least {256 + len(special)}, one for each byte, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True) for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in corpus() for piece in pieces(text, before_space)), trainer)
    return TextTokenizer(tokenizer, EOS if eos else None)


def _without_merges(names: list[str], eos: bool) -> Tokenizer:
    """Each name a token; the end of a document is one more, which no text encodes to."""
    names = [*names, EOS] if eos else names
    return Tokenizer(models.BPE(vocab={name: token for token, name in enumerate(names)}, merges=[]))


def _byte_names() -> list[str]:
    """What byte-level tokenizers call byte 0 ... 255: printable Latin-1 by itself, the others 256, 257, ... in turn."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
