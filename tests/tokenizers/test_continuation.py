"""Text that goes on from other text: after a gap, after a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from maskgen.pipelines.text import TextPipeline
from maskgen.tokenizers.text.learned import bpe, characters, utf8_bytes
from maskgen.tokenizers.text.tokenizer import TextTokenizer

TEXT = "the river ran through the valley and the river ran into the sea: the end\nof the river "


def sentencepiece(scheme: str) -> TextTokenizer:
    """As Llama has it: a space is part of the word after it, and one is put before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    alphabet = sorted({*TEXT.replace(" ", "▁")})
    if scheme == "normaliser":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        before = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(before)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = [AddedToken("<unk>", special=True)]
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    if scheme == "normaliser":  # trained on words, applied to a whole text
        cuts = [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if scheme == "normaliser":
        tokenizer = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}))
    return TextTokenizer(tokenizer)


def wordpiece() -> TextTokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return TextTokenizer(tokenizer)


KINDS: dict[str, Callable[[], TextTokenizer]] = {
    "characters": lambda: characters(lambda: iter([TEXT])),
    "bytes": utf8_bytes,
    "byte-level bpe": lambda: bpe(lambda: iter([TEXT]), vocab_size=300),
    "always": lambda: sentencepiece("always"),
    "first": lambda: sentencepiece("first"),
    "normaliser": lambda: sentencepiece("normaliser"),
    "wordpiece": wordpiece,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
SENTENCE = "the river ran through the valley"


def pipeline_of(tokenizer: TextTokenizer) -> TextPipeline:
    pipeline = TextPipeline.__new__(TextPipeline)

    class Stub:
        pass

    generator = Stub()
    generator.tokenizer = tokenizer  # type: ignore[attr-defined]
    pipeline.generator = generator  # type: ignore[assignment]
    return pipeline


@every_kind
def test_a_text_cut_before_a_space_has_the_tokens_of_the_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    for words in range(1, 6):
        first, rest = SENTENCE.split(" ")[:words], SENTENCE.split(" ")[words:]
        tail = " " + " ".join(rest)
        parts = [tokenizer.encode(" ".join(first)), tokenizer.encode_after(tail)]
        assert torch.equal(torch.cat(parts), tokenizer.encode(SENTENCE)), (words, tokenizer.decode(torch.cat(parts)))


@every_kind
def test_gaps_filled_with_the_tokens_of_the_text_give_the_text_back(kind: str) -> None:
    tokenizer = KINDS[kind]()
    pipeline, whole = pipeline_of(tokenizer), tokenizer.encode(SENTENCE)
    start = len(tokenizer.encode("the river"))
    end = len(tokenizer.encode("the river ran through"))
    gap = "_" * (end - start)
    separate = " " if tokenizer.joins_space else ""
    known = pipeline.known(0, infill=f"the river{separate}{gap} the valley")
    assert known is not None
    assert known.shape[1] == len(whole)
    assert (known[0, start:end] == -1).all()
    assert torch.equal(torch.where(known[0] < 0, whole, known[0]), whole)


@every_kind
def test_a_gap_within_a_word_adds_no_space(kind: str) -> None:
    tokenizer = KINDS[kind]()
    known = pipeline_of(tokenizer).known(0, infill="the ri__er")
    assert known is not None
    assert tokenizer.decode(known[0][known[0] >= 0][-2:]).replace("#", "").strip().endswith("er")
    assert not tokenizer.decode(tokenizer.encode_after("er")).startswith(" ")


def test_only_tokenizers_of_words_join_the_space_before_them() -> None:
    joins = {kind: build().joins_space for kind, build in KINDS.items()}
    assert not joins["characters"]
    assert not joins["bytes"]
    assert joins["byte-level bpe"] == joins["always"] == joins["normaliser"] is True
