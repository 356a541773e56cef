"""Images are read as they are from every kind of place, and what is wrong with one is said with its name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgen.core.pixels import to_uint8
from maskgen.core.rng import Rng
from maskgen.data.base import DataError, ImageSplit
from maskgen.data.image.opening import open_images
from maskgen.data.image.sets import ArraySet, ImageSet, SplitSet


def pictures(n: int = 7, channels: int = 3) -> Tensor:
    return to_uint8(Rng.stream("pictures").uniform((n, channels, 5, 6)))


def save(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:03d}.png")
    return folder


def everywhere(tmp_path: Path, images: Tensor) -> dict[str, Path]:
    folder = save(tmp_path / "folder", images)
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(folder.iterdir(), reverse=True):
            out.write(file, f"deep/{file.name}")
        out.writestr("deep/notes.txt", "not an image")
    arrays = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "plain.npz", images=arrays)
    np.savez_compressed(tmp_path / "adm.npz", arr_0=arrays)
    return {name: tmp_path / name for name in ("folder", "images.zip", "plain.npz", "adm.npz")}


def read(images: ImageSet, size: int = 3) -> Tensor:
    return torch.cat([batch for _, batch in images.batches(size, range(len(images)))])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "images.zip", "plain.npz", "adm.npz"])
def test_every_byte_of_every_image_arrives_in_order(tmp_path: Path, kind: str, channels: int) -> None:
    images = pictures(channels=channels)
    found = open_images(str(everywhere(tmp_path, images)[kind]))
    assert len(found) == 7
    assert torch.equal(read(found), images)
    assert torch.equal(torch.stack(found.read(range(2, 4))), images[2:4])  # backwards too
    assert found.label(3)
    assert found.format == ("npz" if "npz" in kind else "png")


def test_a_data_set_is_named_with_its_split() -> None:
    found = open_images("digits:test")
    assert len(found) == 297
    assert found.labels is not None


@pytest.mark.parametrize("kind", ["folder", "images.zip", "plain.npz"])
def test_the_digest_sees_every_image(tmp_path: Path, kind: str) -> None:
    one = open_images(str(everywhere(tmp_path / "a", pictures())[kind])).digest()
    assert one == open_images(str(everywhere(tmp_path / "b", pictures())[kind])).digest()
    altered = pictures()
    altered[4, 1, 2, 3] ^= 1
    assert one != open_images(str(everywhere(tmp_path / "c", altered)[kind])).digest()


def test_batches_end_where_the_shape_changes_and_skip_rows_that_are_not_asked_for() -> None:
    images = ArraySet(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1))
    found = [(first, batch.flatten().tolist()) for first, batch in images.batches(3, [0, 1, 2, 3, 6, 7])]
    assert found == [(0, [0, 1, 2]), (3, [3]), (6, [6, 7])]


def test_colour_grey_and_palette_become_what_the_packages_see(tmp_path: Path) -> None:
    picture = Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy())
    for mode in ("RGB", "L", "P", "RGBA", "CMYK"):
        picture.convert(mode).save(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    shapes = {Path(open_images(str(tmp_path)).label(row)).stem: row for row in range(5)}
    found = open_images(str(tmp_path))
    for mode, row in shapes.items():
        assert found.read(range(row, row + 1))[0].shape[0] == (1 if mode == "L" else 3)
        opened = Image.open(found.label(row)).convert("RGB")
        ours = found.read(range(row, row + 1))[0].expand(3, -1, -1)
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(opened))


def broken(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """A source, and what the message must hold."""
    good = save(tmp_path / "good", pictures())
    raw = (good / "002.png").read_bytes()
    for name, content in {"truncated": raw[:60], "empty": b"", "text": b"hello"}.items():
        folder = save(tmp_path / name, pictures(3))
        (folder / "bad.png").write_bytes(content)
    deep = save(tmp_path / "sixteen", pictures(2))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep / "deep.png")
    (tmp_path / "none").mkdir()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.png", raw)
        out.writestr("b.png", raw[:50])
    (tmp_path / "bad.zip").write_bytes(archive.getvalue())
    (tmp_path / "no.zip").write_bytes(b"PK not")
    np.savez(tmp_path / "float.npz", images=np.zeros((3, 4, 4, 3), np.float32))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "whole.npz", images=pictures().permute(0, 2, 3, 1).numpy())
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    whole[400] ^= 1
    (tmp_path / "flipped.npz").write_bytes(whole)
    return {
        "truncated": ("truncated", "bad.png is not a readable image"),
        "empty": ("empty", "bad.png"),
        "text": ("text", "bad.png"),
        "sixteen bits": ("sixteen", "deep.png has pixels of mode I"),
        "no image": ("none", "holds no image"),
        "zip with a damaged image": ("bad.zip", "bad.zip:b.png"),
        "no zip": ("no.zip", "no.zip is damaged"),
        "floats": ("float.npz", "images must be uint8"),
        "other arrays": ("other.npz", "holds x; images are called"),
        "cut npz": ("cut.npz", "cut.npz is damaged"),
        "flipped npz": ("flipped.npz", "flipped.npz is damaged"),
        "nothing there": ("nowhere", "no folder, .zip, .npz or DATASET:SPLIT"),
    }


CASES = [
    *("truncated", "empty", "text", "sixteen bits", "no image", "zip with a damaged image", "no zip", "floats"),
    *("other arrays", "cut npz", "flipped npz", "nothing there"),
]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    source, message = broken(tmp_path)[case]
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        read(open_images(str(tmp_path / source)))


def test_a_damaged_member_of_an_archive_is_named_before_any_image_is_read(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("0.png", b"first" * 20)
        out.writestr("1.png", b"second" * 20)
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(b"second", b"SECOND", 1))
    with pytest.raises(DataError, match=r"images\.zip:1\.png cannot be read: Bad CRC-32"):
        open_images(str(archive)).digest()


class Sorted(ImageSplit):
    """Ten classes, one after the other."""

    labels = torch.arange(1000) // 100

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        labels = self.labels[torch.as_tensor(indices)]
        return labels.to(torch.uint8).view(-1, 1, 1, 1), labels

    def fingerprint(self) -> str:
        return "sorted"


def test_a_part_of_a_split_is_from_all_over_it() -> None:
    part = SplitSet(Sorted(), "part", 200)
    assert part.labels is not None
    assert torch.bincount(part.labels, minlength=10).min() > 5
    seen = torch.stack(part.read(range(50, 150))).flatten()
    assert torch.equal(seen.long(), part.labels[50:150])
    assert part.digest() != SplitSet(Sorted(), "whole").digest()
    assert torch.equal(SplitSet(Sorted(), "again", 200).rows, part.rows)
