"""Folders as users have them: names of splits, links, unknown endings, small ones, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maskgen.core.registry import SpecError
from maskgen.data.base import DATASETS, DataError, ImageSource, TextSource
from maskgen.data.content import WHOLE, content_digest
from maskgen.data.image.opening import open_images
from maskgen.data.image.pictures import MOST_PIXELS, read_image, to_square
from maskgen.data.listing import list_files
from maskgen.data.split_folders import find_splits


def picture(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(file, format="PNG")
    return file


def folder(path: Path, **arguments: object) -> ImageSource:
    source = DATASETS.build({"type": "folder", "path": str(path), "size": 4, "channels": 1, **arguments})
    assert isinstance(source, ImageSource)
    return source


def texts(path: Path, **arguments: Any) -> TextSource:
    source = DATASETS.build({"type": "text_file", "path": str(path), "length": 4, **arguments})
    assert isinstance(source, TextSource)
    return source


def sizes(source: ImageSource) -> tuple[int, int]:
    train, test = (len(source.split(name, may_be_empty=True)) for name in ("train", "test"))  # type: ignore[arg-type]
    return train, test


USUAL = (
    *(("train", "test"), ("Train", "Test"), ("TRAIN", "VAL"), ("training", "testing"), ("train", "valid")),
    *(
        ("train", "validation"),
        ("train", "dev"),
        ("Training", "Eval"),
        ("train_set", "test_set"),
        ("train2017", "val2017"),
    ),
    *(
        ("training-set", "Validation Set"),
        ("train_images", "test_images"),
        ("seg_train", "seg_test"),
        ("trn", "tst"),
        ("01_train", "2. Test"),
    ),
    *(("train", "held_out"), ("train", "holdout"), ("trainval", "evaluation")),
)


def test_usual_names_of_splits_are_recognised_in_any_case(tmp_path: Path) -> None:
    for number, (train, test) in enumerate(USUAL):
        root = tmp_path / str(number)
        for name in (f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/b/2.png"):
            picture(root / name)
        source = folder(root)
        assert (source.classes, sizes(source)) == (("a", "b"), (2, 1)), (train, test)
        assert f"{train}/ and {test}/ are the splits" in source.notes


def test_test_goes_before_validation_and_what_is_no_split_is_named(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "val/a/2.png", "test/a/3.png", "test/a/4.png", "extra/a/5.png", "6.png"):
        picture(tmp_path / name)
    source = folder(tmp_path)
    assert sizes(source) == (1, 2)
    assert "left out: extra/, val/, images beside them" in source.notes


@pytest.mark.parametrize(
    "names",
    [
        *(["train"], ["Test"], ["dev"], ["val", "test"], ["train", "training"], ["train", "Train", "test"]),
        ["data/train", "data/val"],
    ],
)
def test_folders_named_like_splits_that_make_no_set_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        picture(tmp_path / name / "a" / "1.png")
    with pytest.raises(DataError, match=r"named like splits|could each be|give .*data as path"):
        folder(tmp_path).split("train")


def test_classes_with_a_name_of_a_split_among_others_stay_classes(tmp_path: Path) -> None:
    for name in ("bus", "train", "car"):
        picture(tmp_path / name / "1.png")
    assert folder(tmp_path).classes == ("bus", "car", "train")


def test_a_text_folder_has_splits_too(tmp_path: Path) -> None:
    for name, text in {
        "Train/1.TXT": "one",
        "Train/2.txt": "two",
        "valid/3.txt": "three",
        "test/4.txt": "four",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {split: list(texts(tmp_path).documents(split)) for split in ("train", "validation", "test")}
    assert found == {"train": ["one", "two"], "validation": ["three"], "test": ["four"]}
    shutil.rmtree(tmp_path / "valid")
    halved = texts(tmp_path, validation_fraction=0.5)
    assert [list(halved.documents(split)) for split in ("train", "validation", "test")] == [["one"], ["two"], ["four"]]
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DataError, match="named like splits"):
        next(texts(tmp_path).documents("train"))


def test_a_real_folder_is_listed_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    for index in range(16):
        picture(tmp_path / "data" / ("cat" if index % 2 else "dog") / f"{index}.png")
    outside = picture(tmp_path / "pool" / "deep" / "1.png").parent.parent
    root = tmp_path / "data"
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "self").symlink_to(".")
    (root / "a_link_to_dog").symlink_to("dog")
    (root / "bird").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "dog" / "above").symlink_to(tmp_path)
    picture(tmp_path / "unrelated" / "1.png")
    source = folder(root)
    assert source.classes == ("bird", "cat", "dog")
    assert sum(sizes(source)) == 17
    assert "links to a folder listed already or above" in source.notes[0]
    assert len(open_images(str(root))) == 17


def test_a_link_inside_training_does_not_lead_to_the_test_images(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "test/a/2.png"):
        picture(tmp_path / name)
    (tmp_path / "train" / "b").symlink_to("../test/a")
    (tmp_path / "train" / "c").symlink_to("../test")
    (tmp_path / "train" / "d").symlink_to("..")
    source = folder(tmp_path)
    assert [file.as_posix() for file in source.split("train").files] == ["train/a/1.png", "train/b/2.png"]  # type: ignore[attr-defined]


def test_linked_folders_of_texts_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "1.txt").write_text("one")
    root = tmp_path / "texts"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "pool")
    (root / "again").symlink_to(tmp_path / "pool")
    (tmp_path / "pool" / "cycle").symlink_to(root)
    source = texts(root, validation_fraction=0, test_fraction=0)
    assert list(source.documents("train")) == ["one"]
    assert "2 links to a folder listed already or above" in source.notes[0]


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    for name in ("a/1.JPG", "a/2.jfif", "a/3.jpe", "b/4.Png", "b/5.avif"):
        picture(tmp_path / name)
    for name in ("a/x.heic", "a/y.HEIC", "a/notes.md", "b/none", ".hidden.png", "__MACOSX/._1.png", "b/._4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    (tmp_path / "b" / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    (tmp_path / "b" / "zero.png").symlink_to("/dev/zero")
    source = folder(tmp_path)
    assert sum(sizes(source)) == 5
    assert source.notes == (
        "left out: 4 files (.heic 2, no ending 1, .md 1), "
        "3 names of no regular file (b/broken.png, b/pipe.png, b/zero.png)",
    )
    assert folder(tmp_path).report()[0].startswith(f"data {tmp_path.name}: 2 classes (a, b); ")


def test_hidden_files_are_no_data_in_folders_archives_and_texts(tmp_path: Path) -> None:
    names = ("a/1.png", "__MACOSX/a/._1.png", "a/._2.png", ".git/3.png", "a/.4.png")
    for name in names:
        picture(tmp_path / "pictures" / name)
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).with_suffix(".txt").write_text("text")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "pictures" / name, name)
    assert sum(sizes(folder(tmp_path / "pictures"))) == 1
    assert [len(open_images(str(tmp_path / name))) for name in ("pictures", "pictures.zip")] == [1, 1]
    assert len(list(texts(tmp_path / "texts", validation_fraction=0, test_fraction=0).documents("train"))) == 1


def test_text_files_of_other_endings_are_named_and_can_be_read(tmp_path: Path) -> None:
    for name in ("1.txt", "2.TXT", "3.md", "4.rst"):
        (tmp_path / name).write_text(name)
    kept = {"validation_fraction": 0, "test_fraction": 0}
    source = texts(tmp_path, **kept)
    assert list(source.documents("train")) == ["1.txt", "2.TXT"]
    assert source.notes == ("left out: 2 files (.md 1, .rst 1); data.endings='[.txt, .md]' would read .md",)
    assert len(list(texts(tmp_path, endings=[".TXT", "md"], **kept).documents("train"))) == 3
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.TXT").unlink()
    with pytest.raises(DataError, match=r"holds no \.txt file \(left out: 2 files \(\.md 1, \.rst 1\)\)"):
        next(texts(tmp_path).documents("train"))


def test_small_folders_have_an_image_on_each_side_and_every_class_is_trained(tmp_path: Path) -> None:
    for n in range(1, 9):
        for seed in range(6):
            root = tmp_path / f"{n}-{seed}"
            for index in range(n):
                picture(root / f"{seed}{index}.png")
            train, test = sizes(folder(root))
            assert (train + test, train > 0, test > 0) == (n, True, n > 1), (n, seed)
    for seed in range(8):
        root = tmp_path / f"classes-{seed}"
        for index in range(6):
            picture(root / f"c{index // 2}" / f"{seed}{index}.png")
        source = folder(root, test_fraction=0.8)
        assert set(source.split("train").labels.tolist()) == {0, 1, 2}
        assert len(source.split("test")) >= 1
    nothing = folder(tmp_path / "4-0", test_fraction=0)
    assert sizes(nothing) == (4, 0)
    with pytest.raises(DataError, match=r"test split of 4-0 has no image.*validation_rows=0"):
        nothing.split("test")


def test_a_data_set_is_its_content_and_not_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    for index in range(6):
        picture(root / f"c{index % 2}" / f"{index}.png", index)
    first = folder(root).split("train").fingerprint()
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for name in (f"{root}/", "data", "./data/", "link", "copy", "data/../copy"):
        assert folder(Path(name)).split("train").fingerprint() == first, name
    raw = (tmp_path / "copy" / "c0" / "0.png").read_bytes()
    (tmp_path / "copy" / "c0" / "0.png").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    changed = folder(tmp_path / "copy", test_fraction=0).split("train").fingerprint()
    assert changed != folder(root, test_fraction=0).split("train").fingerprint()


def test_large_data_sets_are_told_apart_by_blocks_of_each_file(tmp_path: Path) -> None:
    for name in "ab":
        with (tmp_path / name).open("wb") as file:
            file.truncate(WHOLE)  # sparse
    first = content_digest(tmp_path, [Path("a"), Path("b")])
    with (tmp_path / "b").open("r+b") as file:
        file.seek(WHOLE - 1)
        file.write(b"x")
    assert content_digest(tmp_path, [Path("a"), Path("b")]) != first


def test_names_that_are_no_utf_8_or_hold_escape_codes_are_read_and_shown_harmless(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"\x1b[31mred\x1b[0m"):
        root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        for index in range(3):
            picture(root / f"{index}.png")
    picture(tmp_path / "plain" / os.fsdecode(b"\xe9.png"))
    source = folder(tmp_path)
    assert source.classes == ("\\x1b[31mred\\x1b[0m", "plain", "\\udcff\\udcfe")
    assert sum(sizes(source)) == 7
    json.dumps(source.classes).encode()
    "".join([*source.report(), source.split("train").name_of(0)]).encode()
    assert source.split("train").fingerprint()
    found = open_images(str(tmp_path))
    assert len(found.digest()) == 64
    found.label(6).encode()


def test_only_formats_that_are_meant_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.png is not a readable image: its content is none of AVIF, BMP, GIF"):
        read_image(tmp_path / "a.png", 4, 3)
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        open_images(str(tmp_path)).read(range(1))
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png", format="JPEG")  # the content decides, not the ending
    assert read_image(tmp_path / "b.png", 4, 3).shape == (3, 4, 4)


def test_pipes_and_devices_are_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(DataError, match="not a regular file"):
            read_image(tmp_path / name, 4, 3)
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(SpecError, match="is a pipe or a device"):
            texts(path)


def test_giant_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    for name, (width, height) in {"a": (100_000, 100_000), "b": (20_000, 8_000)}.items():
        assert width * height > MOST_PIXELS
        (tmp_path / f"{name}.ppm").write_bytes(f"P5 {width} {height} 255\n".encode())
        with pytest.raises(DataError, match=f"more than the {MOST_PIXELS:,}"):
            read_image(tmp_path / f"{name}.ppm", 4, 1)


def test_a_line_of_pixels_is_not_blown_up_before_it_is_cropped() -> None:
    line = Image.new("L", (1, 60_000), 7)
    for size in (4, 256):  # at 256 the whole line would be 4 billion pixels
        assert torch.equal(to_square(line, size, 1), torch.full((1, size, size), 7, dtype=torch.uint8))


def test_an_image_file_of_an_archive_is_unpacked_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgen.data.image.archives.MOST_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**21))
    images = open_images(str(tmp_path / "bomb.zip"))
    for use in (images.digest, lambda: images.read(range(1))):
        with pytest.raises(DataError, match=r"bomb\.zip:a\.png unpacks to 2,097,152 bytes"):
            use()


@pytest.mark.parametrize(
    "shape", ["(-1, 4, 4)", "(0, 4, 4)", "(29000000000000, 1, 1)", "(1, 100000, 100000)", "('a',)"]
)
def test_a_hostile_header_of_an_array_is_one_message(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    with pytest.raises(DataError, match=r"a\.npz"):
        open_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b", ""])
def test_a_path_that_can_not_be_is_one_message(path: str) -> None:
    for spec in ({"type": "folder", "path": path, "size": 4}, {"type": "text_file", "path": path}):
        with pytest.raises(SpecError, match=r"no user|NUL|is no f"):
            DATASETS.build(spec)


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a" / "1.png")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="a cannot be listed: Permission denied"):
        list_files(tmp_path, {".png"})


def test_captions_have_no_byte_order_mark_and_lists_name_images_inside(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "deep/c.png"):
        picture(tmp_path / name)
    (tmp_path / "a.TXT").write_bytes("\ufeffa boat".encode())
    lines = [{"file_name": "b.png", "text": "b"}, {"file_name": "deep/../deep/c.png", "text": "c"}]
    lines.append({"file_name": "/gone.png", "text": "d"})
    (tmp_path / "captions.jsonl").write_bytes("\ufeff".encode() + "\n".join(map(json.dumps, lines)).encode())
    source = DATASETS.build({"type": "captioned_folder", "path": str(tmp_path), "size": 4, "test_fraction": 0})
    assert isinstance(source, ImageSource)
    assert source.split("train").captions == ("a boat", "b", "c")  # type: ignore[attr-defined]
    assert source.notes == ("lines of captions.jsonl without an image: 1 (/gone.png)",)


def test_splits_are_found_without_looking_at_every_image(tmp_path: Path) -> None:
    for name in ("TRAIN", "dev"):
        (tmp_path / name).mkdir()
    found = find_splits(tmp_path)
    assert found is not None
    assert (found.train, found.held_out, found.unused) == ("TRAIN", "dev", [])
