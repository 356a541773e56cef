"""`maskgen precompute`: pieces by several processes are the whole, and are not made twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskgen.data.base import DATASETS, DataError, ImageSource
from maskgen.data.cache import token_data
from maskgen.data.shards import PartSplit
from maskgen.tokenizers import TOKENIZERS, ImageTokenizer
from tests.launch import maskgen

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digits() -> ImageSource:
    source = DATASETS.build("digits")
    assert isinstance(source, ImageSource)
    return source


def tokenizer() -> ImageTokenizer:
    built = TOKENIZERS.build({"type": "pixels", "levels": 17}, image_shape=(1, 8, 8))
    assert isinstance(built, ImageTokenizer)
    return built


@pytest.mark.parametrize("n", [1, 2, 7, 297])
def test_parts_are_the_split_in_order(n: int) -> None:
    split = digits().split("test")
    parts = [PartSplit(split, index, n) for index in range(n)]
    assert torch.equal(torch.cat([part.labels for part in parts]), split.labels)
    images = torch.cat([part.__getitems__(range(len(part)))[0] for part in parts])
    assert torch.equal(images, split.__getitems__(range(len(split)))[0])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({part.fingerprint() for part in parts} | {split.fingerprint()}) == n + 1


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="part 3 of 3: there are 297 images, and parts count from 0"):
        PartSplit(digits().split("test"), 3, 3)


def test_pieces_put_together_are_what_one_process_makes(cache: Path, command: Command) -> None:
    wanted = token_data(digits().split("train"), tokenizer(), cache / "alone")
    for part in (1, 0):
        code, out, error = command("precompute", "digits-maskgit", "--parts", "2", "--part", part)
        assert code == 0, error
        assert f"part {part} of 2" in out
    assert len(list(cache.glob("tokens-*.bin"))) == 4
    for _ in range(2):  # the second time there is nothing to do
        assert command("precompute", "digits-maskgit", "--parts", "2")[0] == 0
        assert len(list(cache.glob("tokens-*.bin"))) == 2  # the whole of each split; its parts are gone
    found = token_data(digits().split("train"), tokenizer(), cache)
    assert found.file.read_bytes() == wanted.file.read_bytes()
    assert len(list(cache.glob("tokens-*.bin"))) == 2


def test_a_piece_that_is_there_is_not_made_again(cache: Path, command: Command) -> None:
    assert command("precompute", "digits-maskgit", "--parts", "3", "--part", 1)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in cache.glob("tokens-*.bin")}
    assert command("precompute", "digits-maskgit", "--parts", "3", "--part", 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in cache.glob("tokens-*.bin")} == before
    assert len(before) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion-vq"], "is a tokenizer: it trains on the data themselves"),
        (["digits-maskgit", "--parts", "2", "--part", "2"], "--part 2 must be below --parts 2"),
        (["fashion-dit"], "its tokens take no time to make"),
    ],
)
def test_what_cannot_be_precomputed_is_said(command: Command, arguments: list[str], message: str) -> None:
    code, _, error = command("precompute", *arguments)
    assert code == 2
    assert message in error


@pytest.mark.slow
def test_processes_side_by_side_fill_the_cache(cache: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgen.train.precompute.maskgen", maskgen)
    code, _, error = command("precompute", "digits-maskgit", "--parts", "2", "--processes", "2")
    assert code == 0, error
    wanted = token_data(digits().split("test"), tokenizer(), cache / "alone")
    assert token_data(digits().split("test"), tokenizer(), cache).file.read_bytes() == wanted.file.read_bytes()
