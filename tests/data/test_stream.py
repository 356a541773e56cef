"""Streamed shards: every row once, the same rows whoever reads them and wherever a run goes on."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from maskgen.core.registry import SpecError
from maskgen.data.base import DATASETS, DataError
from maskgen.data.image.stream import Stream, StreamSplit, one_shard
from maskgen.data.interleave import Layout
from maskgen.data.loader import CounterSampler, batches
from maskgen.train.program import run

COUNTS = (7, 13, 1, 10, 12)
N = sum(COUNTS)
counts_of_shards = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)
layouts = st.builds(Layout, window=st.integers(1, 9), lanes=st.integers(1, 5), period=st.integers(5, 17))


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), shade).save(out, "PNG")
    return out.getvalue()


def table(first: int, n: int) -> datasets.Dataset:
    rows = range(first, first + n)
    tree: dict[str, list[Any]] = {
        "image": [{"bytes": png(row), "path": None} for row in rows], "label": [f"class {row % 3}" for row in rows]
    }  # fmt: skip
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    return datasets.Dataset.from_dict(tree, features=features)


def parquet(folder: Path) -> None:
    for index, (split, first, n) in enumerate(shards()):
        table(first, n).to_parquet(folder / f"{split}-{index:05d}.parquet")


def arrow(folder: Path) -> None:
    import pyarrow as pa

    for index, (split, first, n) in enumerate(shards()):
        whole = table(first, n).data.table
        with (
            pa.OSFile(str(folder / f"{split}-{index:05d}.arrow"), "wb") as out,
            pa.ipc.new_stream(out, whole.schema) as to,
        ):
            to.write_table(whole)


def tar(folder: Path) -> None:
    for index, (split, first, n) in enumerate(shards()):
        with tarfile.open(folder / f"{split}-{index:05d}.tar", "w") as out:
            for row in range(first, first + n):
                for ending, raw in (("png", png(row)), ("cls", str(row % 3).encode())):
                    member = tarfile.TarInfo(f"{row:05d}.{ending}")
                    member.size = len(raw)
                    out.addfile(member, io.BytesIO(raw))


def shards() -> list[tuple[str, int, int]]:
    """Split, first row and rows of each: the shade of an image is the number of its row."""
    starts = [sum(COUNTS[:index]) for index in range(len(COUNTS))]
    return [*(("train", first, n) for first, n in zip(starts, COUNTS, strict=True)), ("test", 100, 6)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    parquet(tmp_path / "shards")
    return tmp_path / "shards"


def stream(folder: Path, **changes: Any) -> Stream:
    return Stream(str(folder), size=4, channels=1, **{"buffer": 4, "lanes": 4, "batch_size": 8, **changes})


def shades(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@settings(deadline=None, max_examples=60)
@given(counts_of_shards, layouts, st.integers(0, 3))
def test_an_epoch_has_every_row_once(counts: list[int], layout: Layout, epoch: int) -> None:
    order = layout.order(counts, 0, epoch)
    assert order.sort().values.tolist() == list(range(sum(counts)))
    assert torch.equal(order, layout.order(counts, 0, epoch))


@settings(deadline=None, max_examples=60)
@given(counts_of_shards, layouts)
def test_a_shard_is_read_forwards_a_window_at_a_time(counts: list[int], layout: Layout) -> None:
    order, start = layout.order(counts, 0, 0), 0
    for count in counts:
        rows = order[(order >= start) & (order < start + count)] - start
        windows = rows // layout.window
        assert torch.equal(windows, windows.sort().values)
        start += count


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = [Layout(4, 2, 8).order([20, 20], seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_read_shards_of_their_own(world: int, epoch: int) -> None:
    counts, layout = [64] * 8, Layout(16, 4, 24)  # 512 rows: epochs begin inside of a period
    order, before = layout.order(counts, 0, epoch), epoch * 512
    shards_of: list[set[int]] = [set() for _ in range(world)]
    for place, row in enumerate(order[: 512 - 2 * 24].tolist()):  # at the end lanes fill each other's places
        shards_of[(before + place) % 24 * world // 24].add(row // 64)
    assert sum(map(len, shards_of)) == 8
    assert set.union(*shards_of) == set(range(8))


@pytest.mark.parametrize("write", [parquet, arrow, tar])
def test_shards_of_every_format_have_their_images_and_labels(tmp_path: Path, write: Callable[[Path], None]) -> None:
    home = tmp_path / "shards"
    home.mkdir()
    write(home)
    columns = {"image_column": "png", "label_column": "cls"} if write is tar else {}
    source = stream(home, **columns)
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test)) == (N, 6)
    images, labels = train.__getitems__(list(range(N)))
    assert shades(images) == list(range(N))
    assert labels.tolist() == [row % 3 for row in range(N)]
    assert shades(test.__getitems__([5, 0])[0]) == [105, 100]
    assert source.classes == (("0", "1", "2") if write is tar else ("class 0", "class 1", "class 2"))


def taken(split: StreamSplit, n: int, workers: int = 0, **place: int) -> list[list[int]]:
    order = CounterSampler(len(split), 8, 0, **place)
    order.permute = split.permute
    return [shades(images) for images, _ in islice(batches(split, order, workers), n)]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 0), (1, 2), (2, 2)])
def test_processes_and_workers_share_one_order(folder: Path, world: int, workers: int) -> None:
    n = 3 * N // 8
    alone: Any = stream(folder).split("train")
    whole = taken(alone, n)
    rows = list(chain(*whole))
    assert sorted(rows[:N]) == sorted(rows[N : 2 * N]) == list(range(N))
    parts = [taken(alone, n, workers, rank=rank, world=world) for rank in range(world)]
    assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("start", [1, 5, 9])
def test_a_resume_in_the_middle_gives_the_same_rows(folder: Path, start: int) -> None:
    whole = taken(stream(folder).split("train"), 12)  # type: ignore[arg-type]
    assert taken(stream(folder).split("train"), 12 - start, start=start) == whole[start:]  # type: ignore[arg-type]


def test_each_process_opens_its_own_shards_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split: Any = stream(folder, lanes=2).split("train")
    opened: list[int] = []

    def counted(rows: Any, shard: int) -> Any:
        opened.append(shard)
        return one_shard(rows, shard)

    monkeypatch.setattr("maskgen.data.image.stream.one_shard", counted)
    taken(split, N // 8 - 1)
    assert len(opened) == len(set(opened))


def test_the_index_is_made_once_and_anew_for_other_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stream(folder).split("train").fingerprint()
    monkeypatch.setattr(Stream, "_read_index", lambda *_: pytest.fail("it was read again"))
    assert stream(folder).split("train").fingerprint() == first
    monkeypatch.undo()
    table(0, 5).to_parquet(folder / "train-00009.parquet")
    monkeypatch.setenv("MASKGEN_CACHE", str(folder.parent / "other"))
    assert stream(folder).split("train").fingerprint() != first


def test_a_damaged_index_is_made_anew(folder: Path) -> None:
    first = stream(folder).split("train").fingerprint()
    (file,) = (folder.parent / "cache").glob("stream-*.safetensors")
    for junk_bytes in (b"junk", file.read_bytes()[:-20], b""):
        file.write_bytes(junk_bytes)
        assert stream(folder).split("train").fingerprint() == first


def test_a_shard_that_was_cut_short_is_named(folder: Path) -> None:
    file = folder / "train-00001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"shards, shard 1 of 'train' cannot be read: .*[Pp]arquet") as error:
        stream(folder).split("train")
    assert "\n" not in str(error.value)


def test_a_column_that_has_no_classes_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="column 'image' has no classes"):
        stream(folder, label_column="image").split("train")


def test_without_labels_rows_are_counted(folder: Path) -> None:
    split = stream(folder, label_column=None).split("train")
    assert len(split) == N
    assert (split.labels == -1).all()


def test_faults_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        stream(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"has no column 'picture'; it has .*image"):
        stream(folder, image_column="picture").split("train")
    with pytest.raises(DataError, match="split 'dev', cannot be streamed"):
        stream(folder, train_split="dev").split("train")
    with pytest.raises(DataError, match=r"split 'dev', cannot .*; name a split that it has in data\.test_split"):
        stream(folder, test_split="dev").split("test")
    with pytest.raises(ValueError, match="batch_size at least lanes"):
        Layout(1, 9, 8)
    split: Any = stream(folder).split("train")
    split.reader.rows = junk()
    with pytest.raises(DataError, match="shard 0, row 2: no readable image"):
        split.__getitems__([2])


def junk() -> Any:
    images = [{"bytes": b"junk", "path": None}] * 3
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": images}, features=features)
    return rows.to_iterable_dataset(num_shards=1).decode(False)


@pytest.mark.slow
def test_a_run_over_a_stream_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    data = {"type": "stream", "name": str(folder), "size": 4, "channels": 1, "buffer": 4, "lanes": 2, "batch_size": 8}
    recipe = tmp_path / "recipe.yaml"
    model = {"type": "dit", "width": 16, "depth": 1, "heads": 2}
    train = {
        "batch_size": 8,
        "log_every": 1,
        "preview_every": 0,
        "tensorboard": False,
        "validation_rows": 4,
        "steps": 9,
    }
    field = {
        "data": data, "tokenizer": {"type": "patches", "size": 2}, "model": model, "objective": "denoising",
        "process": {"type": "gaussian", "schedule": "rectified", "target": "flow", "scale": "straight"},
        "train": {**train, "checkpoint_every": 4, "keep_checkpoints": 9},
    }  # fmt: skip
    recipe.write_text(json.dumps(field))
    run(str(recipe), [], str(tmp_path / "whole"), device="cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (8, 9):
        shutil.rmtree(tmp_path / "parts" / f"checkpoint-{step}")
    run(str(recipe), [], str(tmp_path / "parts"), resume=True, device="cpu")
    files = [(tmp_path / name / "checkpoint-9" / "training.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_texts_of_a_folder_of_shards_are_those_of_the_shards(tmp_path: Path) -> None:
    home, texts = tmp_path / "texts", [f"document {index}" for index in range(40)]
    home.mkdir()
    for index in range(4):
        part = texts[10 * index : 10 * index + 10]
        datasets.Dataset.from_dict({"text": part}).to_parquet(home / f"train-{index}.parquet")
    spec = {"type": "hub_text", "name": str(home), "streaming": True, "n_documents": 40, "validation_fraction": 0.25}
    source: Any = DATASETS.build(spec)
    assert [*source.documents("train"), *source.documents("validation"), *source.documents("test")] == texts
    before = source.fingerprint("train")
    datasets.Dataset.from_dict({"text": texts}).to_parquet(home / "train-3.parquet")
    assert DATASETS.build(spec).fingerprint("train") != before  # type: ignore[union-attr, call-arg]
    with pytest.raises(SpecError, match="is a path, not a name on the hub"):
        DATASETS.build({**spec, "streaming": False})
