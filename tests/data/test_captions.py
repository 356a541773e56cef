"""Laws of captioned pictures and of their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskgen.data.base import DataError
from maskgen.data.image.captions import (
    CaptionedFolder,
    CaptionedRows,
    CaptionedSplit,
    CaptionSettings,
    CaptionTable,
    embedded,
    read_embeddings,
)
from maskgen.data.loader import CounterSampler, batches
from maskgen.tokenizers.text.encoder import TextEncoder
from tests.captioned import pictures, tiny_encoder

TRAIN = {"train/b/1.png": "a red boat", "train/a.png": "the  tree\n", "train/c.jpg": "", "train/d.png": "a red boat"}
TEST = {"test/x.png": "a blue car", "test/y.png": "a red boat"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert"))


def source(path: Path) -> CaptionedFolder:
    return CaptionedFolder(str(path), size=8)


def splits(path: Path) -> list[CaptionedSplit]:
    both = [source(path).split("train"), source(path).split("test")]
    return [split for split in both if isinstance(split, CaptionedSplit)]


@pytest.mark.parametrize("is_listed", [False, True], ids=["files beside", "a list"])
def test_captions_go_with_their_pictures(tmp_path: Path, is_listed: bool) -> None:
    train, test = splits(pictures(tmp_path, TRAIN | TEST, is_listed=is_listed))
    assert dict(zip([file.as_posix() for file in train.files], train.captions, strict=True)) == {
        "train/a.png": "the tree", "train/b/1.png": "a red boat", "train/c.jpg": "", "train/d.png": "a red boat"
    }  # fmt: skip
    assert test.captions == ("a blue car", "a red boat")
    assert source(tmp_path).classes == ()
    assert sorted([*train.rows, *test.rows]) == list(range(6))


def test_a_list_counts_before_files_and_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    pictures(tmp_path, TRAIN | TEST)
    (tmp_path / "train" / "b" / "captions.jsonl").write_text('{"file_name": "1.png", "text": "a tree"}\n\n')
    assert "a tree" in splits(tmp_path)[0].captions


def test_a_folder_without_parts_is_split_by_name(tmp_path: Path) -> None:
    pictures(tmp_path, {f"{n}.png": f"tree {n}" for n in range(40)})
    train, test = splits(tmp_path)
    assert len(train) + len(test) == 40
    for split in (train, test):
        assert [f"tree {file.stem}" for file in split.files] == list(split.captions)


def breakages() -> dict[str, tuple[Callable[[Path], Any], str]]:
    return {
        "missing": (lambda home: (home / "train/a.txt").unlink(), "a.png has no caption: neither a.txt"),
        "no text": (lambda home: (home / "train/a.txt").write_bytes(b"\xff\xfe"), "a.txt is no readable text"),
        "no JSON": (lambda home: (home / "captions.jsonl").write_text("boat"), "captions.jsonl, line 1: expected"),
        "no text key": (
            lambda home: (home / "captions.jsonl").write_text('\n{"file_name": "train/a.png"}'),
            "captions.jsonl, line 2: expected",
        ),
    }


@pytest.mark.parametrize(("spoil", "message"), breakages().values(), ids=breakages())
def test_captions_that_cannot_be_read_are_named(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(pictures(tmp_path, TRAIN | TEST))
    with pytest.raises(DataError, match=message):
        splits(tmp_path)


def test_each_text_is_embedded_once_and_found_again(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, settings = splits(pictures(tmp_path / "p", TRAIN | TEST)), CaptionSettings(encoder=encoder, length=4)
    table, numbers = embedded(both, settings, tmp_path / "cache", progress=False)
    assert len(table.array) == 4  # of six captions
    for split, of_split in zip(both, numbers, strict=True):
        expected = TextEncoder(encoder, 4).embed(split.captions)
        torch.testing.assert_close(table.rows(of_split), expected, atol=2e-3, rtol=2e-3)
    monkeypatch.setattr(TextEncoder, "embed", lambda *_: pytest.fail("was embedded again"))
    again, _ = embedded(both, settings, tmp_path / "cache", progress=False)
    assert np.array_equal(again.array, table.array)


def test_other_captions_encoders_and_damaged_files_are_embedded_anew(tmp_path: Path, encoder: str) -> None:
    both, cache = splits(pictures(tmp_path / "p", TRAIN | TEST)), tmp_path / "cache"
    other = str(tiny_encoder(tmp_path / "other", seed=1))
    tables = [
        embedded(both, CaptionSettings(**settings), cache, progress=False)[0]
        for settings in (
            {"encoder": encoder, "length": 4},
            {"encoder": encoder, "length": 5},
            {"encoder": other, "length": 6},
        )
    ]
    assert [table.array.shape for table in tables] == [(4, 4, 8), (4, 5, 8), (4, 6, 8)]
    embedded(
        splits(pictures(tmp_path / "q", TEST | {"train/z.png": "tree"})),
        CaptionSettings(encoder=encoder, length=3),
        cache,
    )
    files = sorted(cache.glob("*.bin"))
    assert len(files) == 4
    first = next(file for file in files if file.stat().st_size == 4 * 4 * 8 * 2)
    good = first.read_bytes()
    first.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    embedded(both, CaptionSettings(encoder=encoder, length=4), cache, progress=False)
    assert first.read_bytes() == good


@pytest.mark.parametrize("name", ["c.npy", "c.safetensors"])
def test_embeddings_made_elsewhere_are_matched_by_path(tmp_path: Path, name: str) -> None:
    both = splits(pictures(tmp_path / "p", TRAIN | TEST))
    array = np.arange(6 * 2 * 3, dtype=np.float32).reshape(6, 2, 3)
    if name.endswith("npy"):
        np.save(tmp_path / name, array)
    else:
        save_file({"captions": torch.from_numpy(array)}, tmp_path / name)
    table, numbers = embedded(both, CaptionSettings(embeddings=str(tmp_path / name)))
    paths = sorted(file for split in both for file in split.files)
    for split, of_split in zip(both, numbers, strict=True):
        expected = torch.stack([torch.from_numpy(array[paths.index(file)]) for file in split.files])
        assert torch.equal(table.rows(of_split), expected)
    np.save(tmp_path / "short.npy", array[:5])
    with pytest.raises(DataError, match="holds 5 captions, the folder 6 images"):
        embedded(both, CaptionSettings(embeddings=str(tmp_path / "short.npy")))


def test_what_gives_no_embeddings_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "integers.npy", np.zeros((2, 3, 4), np.int64))
    np.save(tmp_path / "one.npy", np.zeros((3, 4), np.float16))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert read_embeddings(tmp_path / "one.npy").shape == (1, 3, 4)
    for name in ("integers.npy", "broken.safetensors", "absent.npy", "captions.csv"):
        with pytest.raises(DataError, match=f"{name} holds no embedded captions"):
            read_embeddings(tmp_path / name)


def test_rows_keep_their_captions_in_any_order_and_by_any_worker(tmp_path: Path, encoder: str) -> None:
    train, test = splits(pictures(tmp_path / "p", TRAIN | TEST))
    table, (numbers, _) = embedded([train, test], CaptionSettings(encoder=encoder, length=3), tmp_path / "cache")
    by_picture = {int(train[row][0].sum()): table.rows(numbers[[row]])[0] for row in range(len(train))}
    seen = 0
    for images, pairs in batches(CaptionedRows(train, numbers), CounterSampler(len(train), 3, seed=0), workers=1):
        assert pairs.shape == (3, 2)
        for image, caption in zip(images, table.rows(pairs[:, 1]), strict=True):
            assert torch.equal(caption, by_picture[int(image.sum())])
        seen += 3
        if seen >= 9:
            break


def test_a_table_is_read_by_row(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float16).reshape(4, 3, 2)
    table = CaptionTable(array)
    assert (table.length, table.width) == (3, 2)
    assert torch.equal(table.rows(torch.tensor([3, 0])), torch.from_numpy(array[[3, 0]]).float())


def test_settings_need_a_source_of_embeddings() -> None:
    with pytest.raises(ValueError, match="give an encoder, embeddings or both"):
        CaptionSettings(length=3)
    with pytest.raises(DataError, match="give a prompt as a file of embeddings"):
        CaptionSettings(embeddings="c.npy").build_encoder()
