"""Laws of the token cache."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.core.errors import DiskFull
from maskgen.data.base import DataError, TensorSplit
from maskgen.data.cache import TokenData, default_cache_dir, token_data, write_cache
from maskgen.data.loader import CounterSampler, batches, in_order
from maskgen.tokenizers.base import ImageTokenizer


class Columns(ImageTokenizer):
    """The first pixel column as tokens: a tokenizer that counts its calls."""

    def __init__(self, vocab_size: int = 256, shift: int = 0, fails_at: int = -1) -> None:
        super().__init__()
        self.vocab_size, self.shift, self.fails_at = vocab_size, shift, fails_at
        self.grid, self.calls = (3, 1), 0

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return (images[:, 0, :, 0] * 255).round().long() + self.shift

    def decode(self, tokens: Tensor) -> Tensor:
        return ((tokens - self.shift) / 255)[:, None, :, None].expand(-1, 1, 3, 2)

    def extra_repr(self) -> str:
        return f"shift={self.shift}"


def split(n: int = 600) -> TensorSplit:
    return TensorSplit((torch.arange(n * 6) % 251).to(torch.uint8).view(n, 1, 3, 2), torch.arange(n) % 7)


def make(tokenizer: Columns, cache: Path, images: TensorSplit | None = None) -> TokenData:
    return token_data(images or split(), tokenizer, cache, progress=False)


def all_tokens(data: TokenData) -> Tensor:
    return data.__getitems__(range(len(data)))[0]


def test_cached_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = Columns()
    data = make(tokenizer, tmp_path)
    images, labels = split().__getitems__(range(600))
    assert torch.equal(all_tokens(data), Columns().encode(images.float() / 255))
    assert all_tokens(data).dtype == torch.int64
    assert torch.equal(data.labels, labels)
    assert len(data) == 600
    row, label = data[-1]
    assert torch.equal(row, all_tokens(data)[599])
    assert label == labels[599]


def test_tokens_are_made_once(tmp_path: Path) -> None:
    first, second = Columns(), Columns()
    tokens = all_tokens(make(first, tmp_path))
    assert torch.equal(all_tokens(make(second, tmp_path)), tokens)
    assert first.calls == 3
    assert second.calls == 0


def test_other_images_or_another_tokenizer_have_their_own_cache(tmp_path: Path) -> None:
    for tokenizer, images in ((Columns(), split()), (Columns(shift=1), split()), (Columns(), split(599))):
        make(tokenizer, tmp_path, images)
    assert len(list(tmp_path.glob("*.bin"))) == len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(2**16, 2), (2**16 + 1, 4)])
def test_the_file_is_as_narrow_as_the_vocabulary_allows(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    data = make(Columns(vocab_size, shift=vocab_size - 251), tmp_path)
    assert data.file.stat().st_size == 600 * 3 * itemsize
    assert int(all_tokens(data).max()) == vocab_size - 1


@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "delete", "break the header", "other header", "empty"])
def test_a_damaged_cache_is_noticed_and_made_again(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    data = make(Columns(), tmp_path)
    wanted, file, header = all_tokens(data), data.file, data.file.with_suffix(".json")
    raw = file.read_bytes()
    {
        "truncate": lambda: file.write_bytes(raw[:-1]),
        "flip a bit": lambda: file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:]),
        "delete": file.unlink,
        "break the header": lambda: header.write_text('{"rows"'),
        "other header": lambda: header.write_text(json.dumps({**json.loads(header.read_text()), "data": "other"})),
        "empty": lambda: header.write_text("[]"),
    }[harm]()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(all_tokens(make(Columns(), tmp_path)), wanted)
    assert "is damaged and will be encoded again" in caplog.text


def test_an_interrupted_encoding_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(Columns(fails_at=2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens 5 to 255, its vocabulary is 0 to 199"):
        make(Columns(200, shift=5), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_can_not_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="MASKGEN_CACHE"):
        make(Columns(), tmp_path / "file")


def test_the_cache_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MASKGEN_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "maskgen"


def test_the_loader_reads_tokens_as_it_reads_images(tmp_path: Path) -> None:
    data = make(Columns(), tmp_path)
    for (tokens, labels), (images, same) in islice(
        zip(
            batches(data, CounterSampler(len(data), 64, 1)),
            batches(split(), CounterSampler(len(split()), 64, 1)),
            strict=True,
        ),
        12,
    ):
        assert torch.equal(labels, same)
        assert torch.equal(tokens, images[:, 0, :, 0].long())
    assert sum(len(labels) for _, labels in in_order(data, 256)) == 600


def test_a_worker_maps_the_file_and_gets_no_copy(tmp_path: Path) -> None:
    data = make(Columns(), tmp_path)
    data.labels = torch.zeros(0, dtype=torch.int64)
    assert len(pickle.dumps(data)) < 1000 < os.path.getsize(data.file)


def test_a_pickled_cache_reads_the_same(tmp_path: Path) -> None:
    data = make(Columns(), tmp_path)
    assert np.array_equal(all_tokens(pickle.loads(pickle.dumps(data))), all_tokens(data))


def test_a_full_disk_has_its_own_exit_code_and_says_what_to_do(tmp_path: Path) -> None:
    def fill(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match=r"no room for .*tokens\.bin: No space left on device; make room, or set"):
        write_cache(tmp_path / "tokens.bin", fill)
    assert DiskFull.code == 5
    assert list(tmp_path.iterdir()) == []


def test_exchanged_files_of_a_cache_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (make(Columns(shift=shift), tmp_path) for shift in (0, 1))
    expected = all_tokens(first)
    for suffixes in ((".bin",), (".json",), (".bin", ".json")):
        for suffix in suffixes:
            one, other = first.file.with_suffix(suffix), second.file.with_suffix(suffix)
            one.rename(tmp_path / "spare")
            other.rename(one)
            (tmp_path / "spare").rename(other)
        caplog.clear()
        assert torch.equal(all_tokens(make(Columns(), tmp_path)), expected)
        assert "will be encoded again" in caplog.text
        make(Columns(shift=1), tmp_path)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    draft = tmp_path / ".tokens-abc.bin.4194305"
    draft.touch()  # no process has a number that high
    make(Columns(), tmp_path)
    assert not draft.exists()
