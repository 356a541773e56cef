"""Laws of the image data sets."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.core.predictions import NULL
from maskgen.core.registry import SpecError
from maskgen.data.base import DATASETS, DataError, ImageSource
from maskgen.data.image.fashion import FASHION_FILES, FASHION_FOLDER, read_idx
from maskgen.data.image.pictures import read_image, to_square

has_fashion = FASHION_FOLDER.is_dir()


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """Six training and three test images, half of the files gzipped."""
    for (images, labels), n in zip(FASHION_FILES.values(), (6, 3), strict=True):
        write_idx(tmp_path / f"{images}.gz", np.arange(n * 784).reshape(n, 28, 28) % 256)
        write_idx(tmp_path / labels, np.arange(n))
    return tmp_path


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Forty one-colour images of two classes, of several forms."""
    for index in range(40):
        file = tmp_path / ("cat" if index % 2 else "dog") / f"{index:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10 + index, 12), (index, 0, 0)).save(file)
    return tmp_path


def fashion(path: Path, **arguments: int) -> ImageSource:
    return DATASETS.build({"type": "fashion_mnist", "path": str(path), **arguments})


def folder(path: Path, **arguments: object) -> ImageSource:
    return DATASETS.build({"type": "folder", "path": str(path), "size": 8, **arguments})


def hub(rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> ImageSource:
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, revision: rows)
    return DATASETS.build({"type": "hub", "name": "owner/some", "size": 4, **arguments})


def colours(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (6, 4), (index, 0, 0)) for index in range(n)]


def test_every_kind_of_data_set_is_in_the_registry() -> None:
    assert DATASETS.names() == [
        "captioned_folder", "conversations", "digits", "fashion_attributes", "fashion_mnist", "folder", "hub",
        "hub_text", "kjv", "stream", "text8", "text_file",
    ]  # fmt: skip


def test_digits_are_split_the_same_way_each_time_and_without_overlap() -> None:
    train, test = (DATASETS.build("digits").split(name) for name in ("train", "test"))
    again = DATASETS.build("digits").split("train")
    assert (len(train), len(test)) == (1500, 297)
    assert train.fingerprint() == again.fingerprint() != test.fingerprint()
    pixels = torch.cat([split.__getitems__(range(len(split)))[0] for split in (train, test)])
    assert pixels.dtype == torch.uint8
    assert pixels.max() == 255
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == [
        *(178, 182, 177, 183, 181),
        *(182, 181, 179, 174, 180),
    ]


def test_a_split_is_loaded_once_and_a_row_is_the_batch_of_one() -> None:
    source = DATASETS.build("digits")
    split = source.split("test")
    assert source.split("test") is split
    images, labels = split.__getitems__([5, 2])
    assert images.shape == (2, *source.image_shape)
    image, label = split[2]
    assert torch.equal(image, images[1])
    assert label == labels[1]
    assert torch.equal(split[-1][0], split[296][0])
    with pytest.raises(IndexError):
        split[297]


def test_an_unknown_split_is_named_with_the_choices() -> None:
    with pytest.raises(DataError, match=r"'valid'.*train, test"):
        DATASETS.build("digits").split("valid")  # type: ignore[arg-type]


def test_idx_files_are_read_gzipped_or_not(idx_folder: Path) -> None:
    source = fashion(idx_folder)
    images, labels = source.split("test").__getitems__([0, 2])
    assert images.shape == (2, *source.image_shape)
    assert images.flatten()[:4].tolist() == [0, 1, 2, 3]
    assert labels.tolist() == [0, 2]
    assert labels.dtype == torch.int64


def test_limits_take_the_first_images(idx_folder: Path) -> None:
    source = fashion(idx_folder, n_train=4)
    assert source.split("train").labels.tolist() == [0, 1, 2, 3]
    assert len(source.split("test")) == 3
    with pytest.raises(SpecError, match="n_test must be at least 1, got 0"):
        fashion(idx_folder, n_test=0)


def test_a_given_path_that_is_wrong_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="lacks train-images-idx3-ubyte"):
        fashion(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_idx_file_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"images{suffix}"
    write_idx(file, np.zeros((2, 28, 28)))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{file}.*fetch it again"):
        read_idx(file)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\0\0\x0d\x01\0\0\0\0", b"<html></html>"])
def test_a_file_that_is_not_idx_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "images"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file} is no IDX file"):
        read_idx(file)


def test_idx_files_of_another_data_set_are_refused(idx_folder: Path) -> None:
    images, labels = FASHION_FILES["test"]
    write_idx(idx_folder / labels, np.arange(2))
    with pytest.raises(DataError, match=f"{labels} holds an array \\(2,\\) for 3 images"):
        fashion(idx_folder).split("test")
    write_idx(idx_folder / labels, np.array([1, 10, 2]))
    with pytest.raises(DataError, match="label 10"):
        fashion(idx_folder).split("test")
    write_idx(idx_folder / f"{images}.gz", np.zeros((3, 32, 32)))
    with pytest.raises(DataError, match=f"{images}.gz.*32"):
        fashion(idx_folder).split("test")


@pytest.mark.skipif(not has_fashion, reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_packaged_fashion_mnist_has_ten_classes_of_equal_size() -> None:
    source = DATASETS.build("fashion_mnist")
    split = source.split("test")
    assert len(source.classes) == 10
    assert split.labels.bincount().tolist() == [1000] * 10
    assert split.__getitems__([0])[0].shape == (1, *source.image_shape)


def test_fashion_mnist_that_is_nowhere_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("maskgen.data.image.fashion.FASHION_FOLDER", Path("absent"))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist.*data\.path.*network.*offline"):
        DATASETS.build("fashion_mnist").split("test")


def test_a_subfolder_is_a_class(picture_folder: Path) -> None:
    source = folder(picture_folder)
    train, test = source.split("train"), source.split("test")
    assert source.classes == ("cat", "dog")
    assert len(train) + len(test) == 40
    images, labels = train.__getitems__(range(len(train)))
    assert images.shape[1:] == source.image_shape == (3, 8, 8)
    assert torch.equal(labels, 1 - images[:, 0, 0, 0].long() % 2)  # the red value was the index


def test_an_image_stays_in_its_split_when_others_are_added(picture_folder: Path) -> None:
    before = folder(picture_folder, test_fraction=0.5).split("test")
    Image.new("L", (9, 9)).save(picture_folder / "cat" / "000.png")
    after = folder(picture_folder, test_fraction=0.5).split("test")
    assert set(before.files) <= set(after.files)  # type: ignore[attr-defined]


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    for name in ("train/b/1.png", "train/a/1.jpg", "test/b/2.PNG", "other/1.png", "train/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / name)
    source = folder(tmp_path, channels=1)
    assert source.classes == ("a", "b")
    assert source.split("train").labels.tolist() == [0, 1]
    assert source.split("test").labels.tolist() == [1]


def test_images_without_class_folders_have_null_labels(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "1.png")
    source = folder(tmp_path, test_fraction=0)
    assert source.classes == ()
    assert source.split("train").labels.tolist() == [NULL]
    with pytest.raises(DataError, match=r"the test split of .* has no image"):
        source.split("test")


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, picture_folder: Path) -> None:
    with pytest.raises(SpecError, match="absent' is no folder"):
        folder(tmp_path / "absent")
    with pytest.raises(SpecError, match=r"test_fraction must be in \[0, 1\), got 1"):
        folder(tmp_path, test_fraction=1.0)
    with pytest.raises(SpecError, match="size must be at least 1, got 0"):
        folder(tmp_path, size=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        folder(tmp_path / "empty").split("train")
    Image.new("L", (9, 9)).save(picture_folder / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png is in no class folder"):
        folder(picture_folder).split("train")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"some.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{file} is not a readable image"):
        read_image(file, 8, 3)


def test_the_fingerprint_of_a_folder_follows_its_files_and_settings(picture_folder: Path) -> None:
    def now(**arguments: object) -> str:
        return folder(picture_folder, **arguments).split("train").fingerprint()

    first = now()
    assert first == now()
    assert len({first, now(crop="none"), now(channels=1), now(size=4), now(test_fraction=0)}) == 5
    file = next((picture_folder / "cat").iterdir())
    os.utime(file, ns=(0, 0))
    assert now(test_fraction=0) != first


def test_center_cuts_the_middle_and_none_keeps_all() -> None:
    image = Image.new("L", (30, 10), 0)
    image.paste(255, (10, 0, 20, 10))
    assert to_square(image, 10, 1).eq(255).all()
    assert to_square(image, 9, 1, "none").float().mean(1)[0, [0, 4, 8]].tolist() == [0, 255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I"])
def test_white_is_white_in_every_mode(mode: str) -> None:
    if mode.startswith("I"):
        image = Image.fromarray(np.full((4, 6), 65535, np.uint16))
        image = image if mode == image.mode else image.convert(mode)
    else:
        image = Image.new("RGB", (6, 4), "white").convert(mode)
    for channels in (1, 3):
        assert to_square(image, 4, channels).eq(255).all()  # type: ignore[arg-type]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray((np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4))
    assert to_square(ramp, 4, 1).flatten().tolist() == [17 * step for step in range(16)]


def test_transparent_parts_are_white_in_a_palette_too() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    palette = Image.new("P", (4, 4), 3)
    palette.info["transparency"] = 3
    assert to_square(clear, 4, 3).eq(255).all()
    assert to_square(palette, 4, 3).eq(255).all()


def test_images_stand_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8)).resize((16, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png", 16, 1), to_square(upright, 16, 1))


@pytest.mark.parametrize("name", ["./images", "/images", "~/images", "tests"])
def test_a_path_is_no_name_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="type: folder"):
        DATASETS.build({"type": "hub", "name": name, "size": 8})


def test_hub_labels_are_classes_numbers_or_words(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"image": colours(3), "label": [1, 0, -1], "word": ["b", "a", None]})
    rows = rows.cast_column("image", datasets.Image())
    named = rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    source = hub(named, monkeypatch)
    assert source.classes == ("no", "yes")
    assert source.split("train").labels.tolist() == [1, 0, NULL]
    words = hub(rows, monkeypatch, label_column="word")
    assert words.classes == ("a", "b")
    assert words.split("train").labels.tolist() == [1, 0, NULL]
    numbers = hub(rows, monkeypatch)
    assert numbers.classes == ("-1", "0", "1")
    assert numbers.split("train").labels.tolist() == [2, 1, 0]
    nothing = hub(rows, monkeypatch, label_column=None)
    assert nothing.classes == ()
    assert nothing.split("train").labels.tolist() == [NULL] * 3


def test_hub_images_come_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"image": colours(3), "label": [0, 1, 2]}).cast_column("image", datasets.Image())
    split = hub(rows, monkeypatch).split("train")
    images, labels = split.__getitems__([2, 0])
    assert images.shape == (2, 3, 4, 4)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [2, 0]
    assert split.fingerprint() == hub(rows, monkeypatch).split("train").fingerprint()
    assert split.fingerprint() != hub(rows, monkeypatch, size=5).split("train").fingerprint()


def test_a_column_that_is_not_there_or_holds_no_images_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"image": ["x"], "label": [0]})
    with pytest.raises(DataError, match=r"no column 'img'.*image"):
        hub(rows, monkeypatch, image_column="img").split("train")
    with pytest.raises(DataError, match=r"owner/some, row 0: no readable image in 'image'"):
        hub(rows, monkeypatch).split("train")[0]


def test_val_is_a_name_of_the_test_split(tmp_path: Path) -> None:
    for name in ("train/b/1.png", "train/a/1.png", "val/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    source = DATASETS.build({"type": "folder", "path": str(tmp_path), "size": 8})
    assert source.classes == ("a", "b")
    assert (len(source.split("train")), len(source.split("test"))) == (2, 1)


def test_larger_digits_show_the_same_digits() -> None:
    small, large = (DATASETS.build({"type": "digits", "size": n}) for n in (8, 32))
    assert isinstance(small, ImageSource)
    assert isinstance(large, ImageSource)
    rows = range(20)
    images, enlarged = (source.split("test").__getitems__(rows)[0].float() for source in (small, large))
    assert enlarged.shape == (20, 1, 32, 32)
    assert (torch.nn.functional.avg_pool2d(enlarged, 4) - images).abs().mean() < 12
