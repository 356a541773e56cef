"""Laws of the text tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from maskgen.core.registry import SpecError
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.text.cuts import PIECE
from maskgen.tokenizers.text.pretrained import huggingface
from maskgen.tokenizers.text.tokenizer import EOS, TextTokenizer, TokenizerError

CORPUS = ["the cat sat on the mat\nand the dog\n", "Größe: 3 € — naïve café 😀\t\r\n  two  spaces "]
SPECS: list[dict[str, Any]] = [
    {"type": "characters"},
    {"type": "characters", "eos": True},
    {"type": "bytes"},
    {"type": "bytes", "eos": True},
    {"type": "bpe", "vocab_size": 300},
    {"type": "bpe", "vocab_size": 300, "eos": False},
]
every_tokenizer = pytest.mark.parametrize("spec", SPECS, ids=str)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def build(spec: dict[str, Any] | str, corpus: list[str] = CORPUS) -> TextTokenizer:
    def documents() -> Iterator[str]:
        return iter(corpus)

    tokenizer = TOKENIZERS.build(spec, corpus=documents)
    assert isinstance(tokenizer, TextTokenizer)
    return tokenizer


def file_of(tokenizer: Tokenizer, path: Path) -> str:
    tokenizer.save(str(path / "tokenizer.json"))
    return str(path / "tokenizer.json")


def word_piece() -> Tokenizer:
    """As BERT's: it lowers case, adds [CLS] and [SEP], cuts after four tokens and fills up to eight."""
    names = ["[UNK]", "[CLS]", "[SEP]", "the", "dog", "##s"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(names[:3])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return tokenizer


@every_tokenizer
def test_decoding_undoes_encoding(spec: dict[str, Any]) -> None:
    tokenizer = build(spec)
    for text in [*CORPUS, "", " ", "\n\n", "  the", "€", "😀ö"]:
        tokens = tokenizer.encode(text)
        assert tokens.dtype == torch.int64
        assert tokens.ndim == 1
        assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("spec", SPECS[2:], ids=str)
def test_bytes_and_bpe_take_any_text(spec: dict[str, Any]) -> None:
    tokenizer = build(spec)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(any_text)
    def takes(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    takes()


def test_characters_are_numbered_by_code_point() -> None:
    tokenizer = build("characters", ["cab\n", "é b"])
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("\n abcé").tolist() == [0, 1, 2, 3, 4, 5]


def test_bytes_are_numbered_by_their_value() -> None:
    text = "aé€😀\n\x00\r\t\x7f\xa0\xad" + "".join(map(chr, range(256)))
    assert build("bytes").encode(text).tolist() == list(text.encode())


def test_the_end_of_a_document_is_one_more_token_shown_as_a_newline() -> None:
    for name, vocab_size in (("characters", len(set("".join(CORPUS)))), ("bytes", 256)):
        plain, ended = build(name), build({"type": name, "eos": True})
        assert (plain.vocab_size, plain.eos) == (vocab_size, None)
        assert (ended.vocab_size, ended.eos) == (vocab_size + 1, vocab_size)
        assert torch.equal(ended.encode(CORPUS[1]), plain.encode(CORPUS[1]))
    bpe = build(SPECS[4])
    assert bpe.eos is not None
    end = torch.tensor([bpe.eos])
    assert bpe.decode(torch.cat([bpe.encode("the cat"), end, bpe.encode("sat")])) == "the cat\nsat"


@pytest.mark.parametrize("spec", [SPECS[1], SPECS[3], SPECS[4]], ids=str)
def test_the_name_of_the_end_in_a_text_does_not_end_it(spec: dict[str, Any]) -> None:
    tokenizer = build(spec, [*CORPUS, EOS])
    text = f"the{EOS}cat"
    tokens = tokenizer.encode(text)
    assert tokenizer.eos not in tokens.tolist()
    assert tokenizer.decode(tokens) == text


def test_bpe_learns_pairs_and_no_more_tokens_than_it_may() -> None:
    tokenizer = build({"type": "bpe", "vocab_size": 280}, CORPUS * 3)
    assert tokenizer.vocab_size == 280
    assert len(tokenizer.encode(CORPUS[0])) < len(CORPUS[0])
    assert build({"type": "bpe", "vocab_size": 280}, CORPUS * 3).fingerprint() == tokenizer.fingerprint()
    with pytest.raises(SpecError, match="vocab_size must be at least 257"):
        build({"type": "bpe", "vocab_size": 256})


def test_an_unknown_character_is_named_and_not_left_out() -> None:
    tokenizer = build("characters", ["abc "])
    with pytest.raises(TokenizerError, match=r"'X', 'é'; .* bytes or bpe"):
        tokenizer.encode("a bé cX")
    with pytest.raises(TokenizerError, match="'h' and 2 more"):
        tokenizer.encode("defghij")


def test_a_corpus_without_a_character_makes_no_tokenizer() -> None:
    with pytest.raises(SpecError, match="hold no character"):
        build("characters", ["", ""])


@every_tokenizer
def test_masks_and_numbers_that_are_no_token_are_shown_as_asked(spec: dict[str, Any]) -> None:
    tokenizer = build(spec)
    tokens = torch.cat([tokenizer.encode("the"), torch.tensor([tokenizer.vocab_size, -1]), tokenizer.encode(" cat")])
    for mask in ("_", "·", "[MASK]", "", "█"):
        assert tokenizer.decode(tokens, mask) == f"the{mask * 2} cat"


def test_half_a_character_before_a_mask_spoils_nothing_else() -> None:
    tokenizer = build("bytes")
    tokens = torch.cat([tokenizer.encode("a€")[:-1], torch.tensor([256]), tokenizer.encode("bé")])
    shown = tokenizer.decode(tokens)
    assert shown.startswith("a\ufffd")
    assert shown.endswith("_bé")


@every_tokenizer
def test_many_texts_are_encoded_as_each_alone(spec: dict[str, Any]) -> None:
    tokenizer = build(spec)
    texts = [CORPUS[0], "", CORPUS[1], *("the cat" for _ in range(20))]
    found = list(tokenizer.encode_all(iter(texts)))
    assert all(torch.equal(tokens, tokenizer.encode(text)) for tokens, text in zip(found, texts, strict=True))


def test_texts_are_read_only_as_far_as_needed() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "the cat " * 1000

    next(build("bytes").encode_all(texts()))
    assert read < 200


@every_tokenizer
@pytest.mark.parametrize("filler", [" ", " the  dog\n", " mat"])
def test_the_pieces_of_a_long_text_have_its_tokens(spec: dict[str, Any], filler: str) -> None:
    tokenizer = build(spec)
    text = "the cat " + filler * (3 * PIECE // len(filler)) + " and the dog"
    pieces = list(tokenizer.pieces(text))
    assert "".join(pieces) == text
    assert len(pieces) > 2 or (spec["type"] == "bpe" and filler == " ")
    whole = torch.tensor(tokenizer._tokenizer.encode(text, add_special_tokens=False).ids)
    assert torch.equal(tokenizer.encode(text), whole)


@every_tokenizer
def test_a_saved_tokenizer_is_the_same(spec: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, file = build(spec), tmp_path / "run" / "tokenizer.json"
    tokenizer.save(file)
    loaded = TextTokenizer.load(file)
    assert (loaded.vocab_size, loaded.eos) == (tokenizer.vocab_size, tokenizer.eos)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.encode(CORPUS[1]), tokenizer.encode(CORPUS[1]))
    everything = torch.arange(tokenizer.vocab_size)
    assert loaded.decode(everything) == tokenizer.decode(everything)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_other_programs_read_a_saved_tokenizer_and_end_documents_with_it(tmp_path: Path) -> None:
    tokenizer, file = build(SPECS[1]), tmp_path / "tokenizer.json"
    tokenizer.save(file)
    tokens = Tokenizer.from_file(str(file)).encode("the").ids
    assert tokens == [*tokenizer.encode("the").tolist(), tokenizer.eos]


def test_the_fingerprint_changes_with_the_vocabulary_and_the_end() -> None:
    made = [build(spec) for spec in SPECS] + [build("characters", ["other"])]
    assert len({tokenizer.fingerprint() for tokenizer in made}) == len(made)


def test_a_published_tokenizer_encodes_the_whole_text_and_nothing_else(tmp_path: Path) -> None:
    file = file_of(word_piece(), tmp_path)
    for source in (file, str(tmp_path)):
        tokenizer = build({"type": "huggingface", "source": source})
        assert tokenizer.encode("The dogs the dog dogs").tolist() == [3, 4, 5, 3, 4, 4, 5]
        assert tokenizer.decode(torch.tensor([3, 4, 5, 6])) == "the dogs _"
        assert tokenizer.eos == 2
    assert huggingface(file, eos="[CLS]").eos == 1


def test_what_a_published_tokenizer_does_not_know_is_named(tmp_path: Path) -> None:
    tokenizer = huggingface(file_of(word_piece(), tmp_path))
    with pytest.raises(TokenizerError, match="no token for 'cat';"):
        tokenizer.encode("the cat")
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)], unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = huggingface(file_of(unigram, tmp_path))
    assert tokenizer.decode(tokenizer.encode("a a")) == "a a"
    with pytest.raises(TokenizerError, match="'ü'"):
        tokenizer.encode("a ü")
    with pytest.raises(TokenizerError, match="can't encode the text: WordLevel"):
        TextTokenizer(Tokenizer(models.WordLevel({"a": 0}))).encode("b")


def test_a_published_tokenizer_with_dropout_encodes_the_same_each_time(tmp_path: Path) -> None:
    file = Path(tmp_path / "tokenizer.json")
    build(SPECS[4], CORPUS * 3).save(file)
    spec = json.loads(file.read_text())
    spec["model"]["dropout"] = 0.5
    file.write_text(json.dumps(spec))
    tokenizer = huggingface(str(file))
    first: Tensor = tokenizer.encode(CORPUS[0])
    assert all(torch.equal(tokenizer.encode(CORPUS[0]), first) for _ in range(10))


def test_numbers_that_a_vocabulary_leaves_out_have_room(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"a": 0, "b": 7})))
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode(torch.tensor([0, 3, 7])) == "a \ufffd b"


def test_the_usual_ends_are_found_in_order_and_none_is_made_up(tmp_path: Path) -> None:
    def eos_of(*names: str) -> int | None:
        numbers = {name: i for i, name in enumerate(names)}
        return huggingface(file_of(Tokenizer(models.WordLevel(numbers)), tmp_path)).eos

    assert eos_of("[SEP]", "</s>", EOS) == 2
    assert eos_of("[SEP]", "</s>") == 1
    assert eos_of("a") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./gone", "no tokenizer './gone'"),
        ("gpt2", "not a hub id"),
        ("owner/name", "no tokenizer 'owner/name': .*no download from the Hugging Face hub"),
        ("{folder}", "there is no such file"),
        ("{folder}/text", "is no readable tokenizer"),
    ],
)
def test_a_tokenizer_that_can_not_be_had_is_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "text").write_text("no json")
    with pytest.raises(SpecError, match=message) as error:
        build({"type": "huggingface", "source": source.format(folder=tmp_path)})
    assert "\n" not in str(error.value)


def test_an_end_that_the_tokenizer_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no token '<end>'"):
        huggingface(file_of(word_piece(), tmp_path), eos="<end>")
