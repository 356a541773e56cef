"""Image data sets from a folder of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from maskgen.core.predictions import NULL
from maskgen.core.rng import fold
from maskgen.data.base import DATASETS, DataError, ImageSplit, SizedSource, SplitName
from maskgen.data.image.pictures import Channels, Crop, check_size, read_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


TEST_NAMES = ("test", "val", "validation")


class FolderSplit(ImageSplit):
    """Image files read when they are asked for: `files` are relative to `root`."""

    def __init__(
        self, root: Path, files: list[Path], labels: Tensor, size: int, channels: Channels, crop: Crop
    ) -> None:
        self.root, self.files, self.labels = root, files, labels
        self.size, self.channels, self.crop = size, channels, crop

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = [read_image(self.root / self.files[row], self.size, self.channels, self.crop) for row in indices]
        return torch.stack(images), self.labels[torch.as_tensor(indices)]

    def name_of(self, row: int) -> str:
        return str(self.root / self.files[row])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.size, self.channels, self.crop)).encode())
        names = [file.as_posix() for file in self.files]
        for name, label, stat in zip(names, self.labels.tolist(), _stats(self.root, names), strict=True):
            digest.update(repr((name, label, *stat)).encode())
        return digest.hexdigest()


def _stats(root: Path, names: Sequence[str], chunk: int = 1000) -> Iterator[tuple[int, int]]:
    """Size and time of change of each file; many are asked for at a time, as a network's disk takes its time."""

    def some(first: int) -> list[tuple[int, int]]:
        stats = (os.stat(f"{root}/{name}") for name in names[first : first + chunk])
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    with ThreadPoolExecutor(16) as pool:
        for part in pool.map(some, range(0, len(names), chunk)):
            yield from part


@DATASETS.register("folder")
class Folder(SizedSource):
    """Image files below a folder; a subfolder is a class, images beside no subfolder are unlabelled.

    Args:
        path: with `train/` and one of `test/`, `val/`, `validation/` inside, these are the splits; else each file's
            relative path decides, so an image never changes sides when others are added.
        size: height and width images are brought to.
        channels: 3 for colour, 1 for grey.
        crop: see `to_square`.
        test_fraction: expected share of test images where the folder has no `test/`.
    """

    def __init__(
        self, path: str, size: int, channels: Channels = 3, crop: Crop = "center", test_fraction: float = 0.1
    ) -> None:
        super().__init__()
        check_size(size)
        if not 0 <= test_fraction < 1:
            raise DataError(f"test_fraction must be in [0, 1), got {test_fraction}")
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{path} is no folder; give the folder that holds the images (or train/ and test/)")
        self.name = self.root.resolve().name
        self.size, self.channels, self.crop, self.test_fraction = size, channels, crop, test_fraction
        self.test_name = next((name for name in TEST_NAMES if (self.root / name).is_dir()), "")
        self.is_split = (self.root / "train").is_dir() and bool(self.test_name)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({name for file in self._files if (name := self._class_of(file))}))

    @cached_property
    def _files(self) -> list[Path]:
        parts = ("train", self.test_name) if self.is_split else ("",)
        files = [Path(part, file) for part in parts for file in list_images(self.root / part)]
        if not files:
            raise DataError(f"{self.root} holds no image; known are {', '.join(sorted(SUFFIXES))}")
        loose = [file for file in files if not self._class_of(file)]
        if loose and len(loose) < len(files):
            raise DataError(f"{self.root / loose[0]} is in no class folder while others are; move or remove it")
        return files

    def _class_of(self, file: Path) -> str:
        folders = file.parts[1:-1] if self.is_split else file.parts[:-1]
        return folders[0] if folders else ""

    def _split_of(self, file: Path) -> str:
        if self.is_split:
            return "train" if file.parts[0] == "train" else "test"
        return "test" if fold("test split", file.as_posix()) < self.test_fraction * 2**63 else "train"

    def _load(self, split: SplitName) -> ImageSplit:
        files = [file for file in self._files if self._split_of(file) == split]
        number = {name: label for label, name in enumerate(self.classes)}
        labels = torch.tensor([number.get(self._class_of(file), NULL) for file in files], dtype=torch.int64)
        return FolderSplit(self.root, files, labels, self.size, self.channels, self.crop)


def list_images(root: Path) -> list[Path]:
    """Image files below a folder, relative to it and sorted; hidden files and folders are left out."""
    found: list[list[str]] = []  # parts of paths: objects of them take a minute for a million files
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        above = list(Path(folder).relative_to(root).parts)
        images = (name for name in names if not name.startswith("."))
        found.extend([*above, name] for name in images if os.path.splitext(name)[1].lower() in SUFFIXES)
    return [Path(*parts) for parts in sorted(found)]
