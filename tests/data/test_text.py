"""Laws of the text data sets and of their tokens on disk."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import NULL
from maskgen.core.registry import SpecError
from maskgen.data.base import DATASETS, DataError, TextSource
from maskgen.data.base import TEXT_SPLITS as SPLITS
from maskgen.data.loader import CounterSampler, batches, in_order
from maskgen.data.text.files import TEXT8_CHARACTERS
from maskgen.data.text.rows import TextData, document_ids, text_data
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.text.cuts import PIECE
from maskgen.tokenizers.text.tokenizer import TextTokenizer, TokenizerError

POEM = "".join(f"line {i} of a poem, naïve and short\n" for i in range(60))
has_bible = pytest.mark.skipif(shutil.which("bible") is None, reason="needs Debian's bible-kjv")


def source_of(type_: str, **arguments: Any) -> TextSource:
    source = DATASETS.build({"type": type_, **arguments})
    assert isinstance(source, TextSource)
    return source


def tokenizer_of(spec: Any, source: TextSource | None = None) -> TextTokenizer:
    tokenizer = TOKENIZERS.build(spec, corpus=lambda: source.documents("train") if source else iter([POEM]))
    assert isinstance(tokenizer, TextTokenizer)
    return tokenizer


@pytest.fixture
def poem(tmp_path: Path) -> str:
    file = tmp_path / "poem.txt"
    file.write_bytes(POEM.encode())
    return str(file)


@pytest.fixture
def shelf(tmp_path: Path) -> str:
    """Twenty documents, document i of i + 1 words."""
    for i in range(20):
        file = tmp_path / "shelf" / ("a" if i < 10 else "b") / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"w{i % 10} " * (i + 1))
    (tmp_path / "shelf" / "notes.md").write_text("not a document")
    return str(tmp_path / "shelf")


def all_tokens(data: TextData) -> Tensor:
    return torch.cat([data.__getitems__(range(len(data)))[0].flatten(), data.tail])


def packed(source: TextSource, tokenizer: TextTokenizer, cache: Path, split: str = "train") -> TextData:
    return text_data(source, split, tokenizer, cache, progress=False)


class FakeBible:
    """A program `bible` alone on PATH, that prints `lines`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", str(self.folder))

    def prints(self, lines: str, status: int = 0) -> None:
        program = self.folder / "bible"
        program.write_text(
            f"#!/bin/sh\nwhile IFS= read -r line; do echo \"$line\"; done <<'END'\n{lines}\nEND\nexit {status}\n"
        )
        program.chmod(0o755)


@pytest.fixture
def fake_bible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBible:
    return FakeBible(tmp_path, monkeypatch)


def hub(rows: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> TextSource:
    """`hub_text` with `rows` as the data set, or a mapping of splits."""

    def load(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> Any:
        return rows[split] if isinstance(rows, dict) else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    return source_of("hub_text", name="owner/some", **arguments)


def documents(n: int, name: str = "d") -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"{name}{i}" for i in range(n)], "other": [0] * n})


def test_one_text_is_split_by_position_and_nothing_is_lost(poem: str) -> None:
    source = source_of("text_file", path=poem, validation_fraction=0.2, test_fraction=0.1)
    parts = [list(source.documents(split)) for split in SPLITS]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0] for part in parts) == POEM
    assert len(parts[1][0]) == int(0.2 * len(POEM))
    assert len(parts[2][0]) == int(0.1 * len(POEM))


def test_documents_are_split_by_order_and_nothing_is_lost(shelf: str) -> None:
    source = source_of("text_file", path=shelf, validation_fraction=0.1, test_fraction=0.25)
    parts = [list(source.documents(split)) for split in SPLITS]
    assert [len(part) for part in parts] == [13, 2, 5]
    assert [len(text.split()) for part in parts for text in part] == list(range(1, 21))
    assert len({source.fingerprint(split) for split in SPLITS}) == 3


def test_characters_of_a_file_stay_as_they_are_without_a_byte_order_mark(tmp_path: Path) -> None:
    text = "a\r\nb\rc\u2028d\ufeff\n\n"
    (tmp_path / "odd.txt").write_bytes(f"\ufeff{text}".encode())
    source = source_of("text_file", path=str(tmp_path / "odd.txt"), validation_fraction=0, test_fraction=0)
    assert list(source.documents("train")) == [text]


def test_a_fingerprint_is_of_the_text_and_not_of_the_place(poem: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(Path(poem).read_bytes())
    first, second = source_of("text_file", path=poem), source_of("text_file", path=str(copy), length=32)
    assert all(first.fingerprint(split) == second.fingerprint(split) for split in SPLITS)
    copy.write_bytes((POEM[:-1] + "!").encode())
    third = source_of("text_file", path=str(copy))
    assert third.fingerprint("train") == first.fingerprint("train")
    assert third.fingerprint("test") != first.fingerprint("test")


def test_a_fingerprint_tells_where_documents_end(tmp_path: Path) -> None:
    found = set()
    for name, texts in (("one", ["ab", "c"]), ("two", ["a", "bc"])):
        (tmp_path / name).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / name / f"{i}.txt").write_text(text)
        source = source_of("text_file", path=str(tmp_path / name), validation_fraction=0, test_fraction=0)
        found.add(source.fingerprint("train"))
    assert len(found) == 2


def test_arguments_that_can_not_be_are_refused(poem: str) -> None:
    for arguments, message in (
        ({"length": 0}, "length must be at least 1"),
        ({"length": 8, "stride": 9}, r"stride must be 1 to length \(8\), got 9"),
        ({"stride": 0}, "stride must be"),
        ({"validation_fraction": -0.1}, r"validation_fraction must be in \[0, 1\)"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must be below 1"),
    ):
        with pytest.raises(SpecError, match=message):
            source_of("text_file", path=poem, **arguments)
    with pytest.raises(DataError, match=r"unknown split 'valid' of poem\.txt; choose from train, validation, test"):
        source_of("text_file", path=poem).documents("valid")


def test_files_that_are_missing_or_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no file or folder"):
        source_of("text_file", path=str(tmp_path / "gone"))
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"image\.txt cannot be read as UTF-8"):
        source_of("text_file", path=str(tmp_path / "image.txt")).fingerprint("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        source_of("text_file", path=str(tmp_path / "empty")).documents("train")


def test_the_bible_is_its_verses_without_their_references(fake_bible: FakeBible) -> None:
    fake_bible.prints("Ge1:1 In the beginning: a 2:3 b.\n1Chr2:13 And  Jesse. \nRev22:21 Amen.")
    source = source_of("kjv", validation_fraction=0, test_fraction=0)
    assert list(source.documents("train")) == ["In the beginning: a 2:3 b.\nAnd  Jesse. \nAmen.\n"]
    fake_bible.prints("Ge1:1 Other.")
    again = source_of("kjv", validation_fraction=0, test_fraction=0)
    assert again.fingerprint("train") == source.fingerprint("train")  # printed once a process


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ("Genesis 1\n1 In the beginning", 0, "prints other lines than"),
        ("", 0, "prints other lines than"),
        ("Ge1:1 In the", 3, "did not print the Bible"),
    ],
)
def test_another_program_called_bible_is_noticed(lines: str, status: int, message: str, fake_bible: FakeBible) -> None:
    fake_bible.prints(lines, status)
    with pytest.raises(DataError, match=message):
        source_of("kjv").documents("train").__next__()


def test_a_missing_bible_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt install bible-kjv"):
        source_of("kjv").fingerprint("train")


@has_bible
def test_the_king_james_bible_is_the_text_that_its_page_describes() -> None:
    source = source_of("kjv")
    parts = ["".join(source.documents(split)) for split in SPLITS]
    text = "".join(parts)
    assert (len(text), text.count("\n"), len(set(text))) == (4_137_850, 31_102, 63)
    assert [len(part) for part in parts] == [3_724_066, 206_892, 206_892]
    assert set(parts[0]) == set(text)
    assert text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth")
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")


@pytest.mark.slow
@pytest.mark.parametrize("is_zipped", [False, True])
def test_text8_is_split_at_90_and_95_million(is_zipped: bool, tmp_path: Path) -> None:
    raw = b"ab c" * (TEXT8_CHARACTERS // 4)
    file = tmp_path / ("text8.zip" if is_zipped else "text8")
    if is_zipped:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("text8", raw)
    else:
        file.write_bytes(raw)
    source = source_of("text8", path=str(file))
    sizes = [sum(map(len, source.documents(split))) for split in SPLITS]
    assert sizes == [90_000_000, 5_000_000, 5_000_000]


def test_what_is_not_text8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text8").write_bytes(b"ab c?")
    with pytest.raises(DataError, match="is not text8: 5 bytes, 1 of them no letter"):
        source_of("text8", path=str(tmp_path / "text8")).documents("train").__next__()
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("other", b"a")
    with pytest.raises(DataError, match="cannot be read"):
        source_of("text8", path=str(tmp_path / "text8.zip")).documents("train").__next__()
    with pytest.raises(SpecError, match=r"get text8\.zip from"):
        source_of("text8", path=str(tmp_path / "gone"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_documents_are_split_by_position(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = documents(20)
    if streaming:
        rows = rows.to_iterable_dataset()
    arguments: dict[str, Any] = {"streaming": streaming, "validation_fraction": 0.2, "test_fraction": 0.1}
    source = hub(rows, monkeypatch, n_documents=20, **arguments)
    parts = [list(source.documents(split)) for split in SPLITS]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert [text for part in parts for text in part] == [f"d{i}" for i in range(20)]
    fewer = hub(rows, monkeypatch, n_documents=10, **arguments)
    assert [len(list(fewer.documents(split))) for split in SPLITS] == [7, 2, 1]
    assert fewer.fingerprint("train") != source.fingerprint("train")
    assert hub(rows, monkeypatch, n_documents=20, **arguments).fingerprint("train") == source.fingerprint("train")
    assert len({source.fingerprint(split) for split in SPLITS}) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_split_of_the_hub_is_taken_whole(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, Any] = {"train": documents(10), "held": documents(3, "h")}
    if streaming:
        rows = {name: part.to_iterable_dataset() for name, part in rows.items()}
    source = hub(rows, monkeypatch, test_split="held", validation_fraction=0.2, n_documents=10, streaming=streaming)
    assert [len(list(source.documents(split))) for split in SPLITS] == [8, 2, 3]
    assert list(source.documents("test")) == ["h0", "h1", "h2"]
    assert len({source.fingerprint(split) for split in SPLITS}) == 3


def test_a_stream_of_unknown_size_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="give n_documents"):
        hub(documents(5).to_iterable_dataset(), monkeypatch, streaming=True).documents("train")


def test_what_is_wrong_with_a_hub_data_set_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'body'; it has \['text', 'other'\]"):
        hub(documents(3), monkeypatch, column="body").documents("train")
    with pytest.raises(DataError, match=r"owner/some, split 'train', row 0: no text but int"):
        list(hub(documents(3), monkeypatch, column="other").documents("train"))
    for arguments, message in (({"n_documents": 0}, "n_documents must be at least 1"), ({"name": "./x"}, "text_file")):
        with pytest.raises(SpecError, match=message):
            source_of("hub_text", **{"name": "owner/some", **arguments})

    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=r"'owner/some', split 'train', cannot be loaded from the hub: no network$"):
        source_of("hub_text", name="owner/some").documents("train")


@pytest.mark.parametrize("spec", ["characters", "bytes", {"type": "bpe", "vocab_size": 300}], ids=str)
def test_rows_and_tail_are_the_text(poem: str, tmp_path: Path, spec: Any) -> None:
    source = source_of("text_file", path=poem, length=64)
    tokenizer = tokenizer_of(spec)
    for split in SPLITS:
        data, text = packed(source, tokenizer, tmp_path, split), "".join(source.documents(split))
        assert tokenizer.decode(all_tokens(data)) == text
        assert (data.characters, data.n_bytes) == (len(text), len(text.encode()))
        assert data.tokens == len(tokenizer.encode(text)) == 64 * len(data) + len(data.tail)
        assert len(data.tail) < 64
        assert not data.documents
        assert all_tokens(data).dtype == torch.int64


def test_labels_are_null_and_rows_come_in_the_order_asked_for(poem: str, tmp_path: Path) -> None:
    data = packed(source_of("text_file", path=poem, length=32), tokenizer_of("bytes"), tmp_path)
    tokens, labels = data.__getitems__([3, 0])
    assert tokens.shape == (2, 32)
    assert labels.tolist() == [NULL, NULL]
    assert bytes(tokens.flatten().tolist()) == POEM.encode()[96:128] + POEM.encode()[:32]
    assert torch.equal(data[-1][0], data[len(data) - 1][0])
    with pytest.raises(IndexError):
        data[len(data)]


def test_only_training_rows_overlap(poem: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bytes")
    source = source_of("text_file", path=poem, length=32, stride=10)
    data, plain = packed(source, tokenizer, tmp_path), source_of("text_file", path=poem, length=32)
    raw = "".join(source.documents("train")).encode()
    assert len(data) == (len(raw) - 32) // 10 + 1
    assert all(bytes(data[i][0].tolist()) == raw[10 * i : 10 * i + 32] for i in range(len(data)))
    assert len(data.tail) == 0
    for split in ("validation", "test"):
        overlapping, apart = (packed(some, tokenizer, tmp_path, split) for some in (source, plain))
        assert torch.equal(all_tokens(overlapping), all_tokens(apart))
        assert len(overlapping.tail) == overlapping.tokens % 32


def test_rows_of_every_length_and_stride_share_one_file(poem: str, tmp_path: Path) -> None:
    cache, tokenizer = tmp_path / "cache", tokenizer_of("bytes")
    for length, stride in ((32, None), (64, None), (64, 8)):
        packed(source_of("text_file", path=poem, length=length, stride=stride), tokenizer, cache)
    assert len(list(cache.glob("*.bin"))) == 1
    packed(source_of("text_file", path=poem), tokenizer_of({"type": "bytes", "eos": True}), cache)
    assert len(list(cache.glob("*.bin"))) == 2


@pytest.mark.parametrize("spec", [{"type": "characters", "eos": True}, {"type": "bpe", "vocab_size": 300}], ids=str)
def test_each_document_is_followed_by_its_end(shelf: str, tmp_path: Path, spec: Any) -> None:
    source = source_of("text_file", path=shelf, length=16, validation_fraction=0, test_fraction=0)
    tokenizer = tokenizer_of(spec, source)
    data, texts = packed(source, tokenizer, tmp_path), list(source.documents("train"))
    assert data.documents
    end = torch.tensor([tokenizer.eos])
    assert torch.equal(all_tokens(data), torch.cat([part for text in texts for part in (tokenizer.encode(text), end)]))
    assert data.characters == sum(map(len, texts))  # the end is no character
    ids = document_ids(all_tokens(data)[None], int(end))
    assert ids.unique().tolist() == list(range(20))


def test_without_an_end_documents_are_joined_by_newlines_and_it_is_said(
    shelf: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of("text_file", path=shelf, length=16, validation_fraction=0, test_fraction=0)
    tokenizer = tokenizer_of("bytes")
    with caplog.at_level(logging.WARNING):
        data = packed(source, tokenizer, tmp_path)
    assert "of shelf are joined by newlines" in caplog.text
    text = "".join(f"{document}\n" for document in source.documents("train"))
    assert tokenizer.decode(all_tokens(data)) == text
    assert data.characters == len(text)
    assert not data.documents
    with pytest.raises(DataError, match=r"set tokenizer\.eos=true"):
        packed(source, tokenizer_of("characters", source), tmp_path)


def test_long_and_empty_documents_are_packed_as_short_ones(tmp_path: Path) -> None:
    texts = ["a b" * PIECE, "", "b", "", "a " * (PIECE // 2), ""]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    source = source_of("text_file", path=str(tmp_path), validation_fraction=0, test_fraction=0)
    tokenizer = tokenizer_of({"type": "characters", "eos": True}, source)
    found = all_tokens(packed(source, tokenizer, tmp_path / "cache"))
    assert tokenizer.decode(found) == "".join(f"{text}\n" for text in texts)


class Counted(TextSource):
    """Documents that count how often they are read."""

    name = "counted"

    def __init__(self, n: int = 40) -> None:
        super().__init__(length=8)
        self.n, self.reads = n, 0

    def _size(self) -> int:
        return self.n

    def _part(self, first: int, last: int) -> Iterator[str]:
        self.reads += 1
        return (f"{i % 10} words\n" for i in range(first, last))

    def fingerprint(self, split: str) -> str:
        return f"{self.n} {split}"


def test_tokens_are_made_once(tmp_path: Path) -> None:
    source, tokenizer = Counted(), tokenizer_of({"type": "bytes", "eos": True})
    first = all_tokens(packed(source, tokenizer, tmp_path))
    assert torch.equal(all_tokens(packed(source, tokenizer, tmp_path)), first)
    assert source.reads == 1
    file = next(tmp_path.glob("*.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(all_tokens(packed(source, tokenizer, tmp_path)), first)
    assert source.reads == 2


def test_the_file_is_as_narrow_as_the_vocabulary_allows(tmp_path: Path) -> None:
    data = packed(Counted(), tokenizer_of({"type": "bytes", "eos": True}), tmp_path)
    assert data.packed.file.stat().st_size == 2 * data.tokens


def test_an_unknown_character_of_a_split_leaves_no_cache(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a" * 90 + "z" * 10)
    source = source_of("text_file", path=str(tmp_path / "text"), length=8)
    tokenizer = tokenizer_of("characters", source)
    with pytest.raises(TokenizerError, match="'z'"):
        packed(source, tokenizer, tmp_path / "cache", "validation")
    assert list((tmp_path / "cache").iterdir()) == []


def test_splits_without_enough_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a" * 100)
    source = source_of("text_file", path=str(tmp_path / "text"), length=101, validation_fraction=0)
    with pytest.raises(DataError, match="train split of text has 95 tokens, less than a row of 101"):
        packed(source, tokenizer_of("bytes"), tmp_path)
    with pytest.raises(DataError, match="validation split of text has no text"):
        packed(source, tokenizer_of("bytes"), tmp_path, "validation")
    short = packed(source, tokenizer_of("bytes"), tmp_path, "test")
    assert (len(short), len(short.tail)) == (0, 5)


def test_the_loader_reads_rows_and_workers_map_the_file(poem: str, tmp_path: Path) -> None:
    data = packed(source_of("text_file", path=poem, length=16, stride=4), tokenizer_of("bytes"), tmp_path)
    again = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 1000 < os.path.getsize(data.packed.file)
    for (tokens, labels), (same, _) in islice(
        zip(
            batches(data, CounterSampler(len(data), 64, 1)),
            batches(again, CounterSampler(len(again), 64, 1)),
            strict=True,
        ),
        12,
    ):
        assert tokens.shape == (64, 16)
        assert torch.equal(tokens, same)
        assert bool((labels == NULL).all())
    assert sum(len(tokens) for tokens, _ in in_order(data, 100)) == len(data)


def test_documents_are_numbered_in_each_row_and_an_end_is_of_the_document_it_ends() -> None:
    tokens = torch.tensor([[5, 9, 5, 5, 9, 9, 5], [9, 5, 5, 5, 5, 5, 9], [5, 5, 5, 5, 5, 5, 5]])
    assert document_ids(tokens, 9).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
