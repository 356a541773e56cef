"""Image data sets from a folder of files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.files import local_path
from maskgen.core.predictions import NULL
from maskgen.core.rng import fold
from maskgen.core.terminal import first_few, printable
from maskgen.data.base import DATASETS, DataError, ImageSplit, SizedSource, SplitName
from maskgen.data.content import CONTENT, content_digest
from maskgen.data.image.pictures import SUFFIXES, Channels, Crop, check_size, read_image
from maskgen.data.listing import LeftOut, ending_of, is_hidden, list_files
from maskgen.data.split_folders import SplitFolders, find_splits


class FolderSplit(ImageSplit):
    """Image files, decoded when they are read: `files` are relative to `root`."""

    def __init__(
        self, root: Path, files: list[Path], labels: Tensor, size: int, channels: Channels, crop: Crop
    ) -> None:
        self.root, self.files, self.labels = root, files, labels
        self.size, self.channels, self.crop = size, channels, crop
        self._fingerprint = ""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = [read_image(self.root / self.files[row], self.size, self.channels, self.crop) for row in indices]
        return torch.stack(images), self.labels[torch.as_tensor(indices)]

    def name_of(self, row: int) -> str:
        return printable(str(self.root / self.files[row]))

    def fingerprint(self) -> str:
        """Of names, labels, contents and preparation; where the folder lies does not count, nor do times."""
        if not self._fingerprint:
            digest = hashlib.sha256(repr((self.size, self.channels, self.crop, self.labels.tolist())).encode())
            digest.update(content_digest(self.root, self.files).encode())
            self._fingerprint = CONTENT + digest.hexdigest()
        return self._fingerprint


@DATASETS.register("folder")
class Folder(SizedSource):
    """Image files below a folder; a subfolder is a class, images beside no subfolder are unlabelled.

    Args:
        path: with folders of the splits inside (`train` or `training`, and `test`, `val`, `validation`, `dev` ..., in
            any case), these are used; else each file's relative path decides, so an image stays in its split when
            others are added. Each split that can have an image has one, and so has each class in training.
        size: height and width images are brought to.
        channels: 3 for colour, 1 for grey.
        crop: see `to_square`.
        test_fraction: expected share of test images where the folder has no folders of splits.
    """

    locations: ClassVar[tuple[str, ...]] = ("path",)
    other_endings: ClassVar[frozenset[str]] = frozenset()
    """Endings of files that belong to the images and do not count as left out."""

    def __init__(
        self, path: str, size: int, channels: Channels = 3, crop: Crop = "center", test_fraction: float = 0.1
    ) -> None:
        super().__init__()
        check_size(size)
        if not 0 <= test_fraction < 1:
            raise DataError(f"test_fraction must be in [0, 1), got {test_fraction}")
        self.root = local_path(path)
        if not path or not self.root.is_dir():
            raise DataError(f"{path!r} is no folder; give the folder that holds the images (or train/ and test/)")
        self.name = printable(self.root.resolve().name)
        self.size, self.channels, self.crop, self.test_fraction = size, channels, crop, test_fraction

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(printable(name) for name in self._class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        _ = self._files
        lines = [str(self._left_out)]
        if self._splits_here is not None:
            unused = [f"{name}/" for name in self._splits_here.unused] + ["images beside them"] * self._has_loose
            lines.append(" and ".join(f"{name}/" for name in self._splits_here.used) + " are the splits")
            lines.append(f"left out: {first_few(unused)}" if unused else "")
        trained = {label for label in self.split("train").labels.tolist() if label != NULL}
        untrained = [name for label, name in enumerate(self.classes) if label not in trained]
        lines.append(f"classes without a training image: {first_few(untrained)}" if untrained else "")
        return tuple(printable(line) for line in lines if line)

    @cached_property
    def _has_loose(self) -> bool:
        """Whether images lie in the folder itself."""
        with os.scandir(self.root) as entries:
            names = (entry.name for entry in entries if not entry.is_dir())
            return any(ending_of(name) in SUFFIXES and not is_hidden([name]) for name in names)

    @cached_property
    def _splits_here(self) -> SplitFolders | None:
        return find_splits(self.root, has_loose=self._has_loose)

    @cached_property
    def _class_names(self) -> list[str]:
        """Names of the class folders, as they are."""
        return sorted({name for file in self._files if (name := self._class_of(file))})

    @cached_property
    def _files(self) -> list[Path]:
        self._left_out = LeftOut()
        parts = ("",) if self._splits_here is None else self._splits_here.used
        files = []
        for part in parts:
            beside = [self.root / name for name in ("", *parts) if name != part]
            found = list_files(self.root / part, SUFFIXES, beside=beside, other=self.other_endings)
            files += [Path(part, file) for file in found.files]
            self._left_out.add(found.left_out)
        if not files:
            left_out = str(self._left_out)
            raise DataError(
                f"{printable(str(self.root))} holds no image{f' ({left_out})' if left_out else ''}; "
                f"known are {', '.join(sorted(SUFFIXES))}"
            )
        loose = [file for file in files if not self._class_of(file)]
        if loose and len(loose) < len(files):
            place = printable(str(self.root / loose[0]))
            raise DataError(f"{place} is in no class folder while others are; move or remove it")
        return files

    def _class_of(self, file: Path) -> str:
        folders = file.parts[:-1] if self._splits_here is None else file.parts[1:-1]
        return folders[0] if folders else ""

    @cached_property
    def _held_out(self) -> frozenset[Path]:
        """The files of the test split."""
        if self._splits_here is not None:
            return frozenset(file for file in self._files if file.parts[0] == self._splits_here.held_out)
        place = {file: fold("test split", file.as_posix()) for file in self._files}
        chosen = {file for file in self._files if place[file] < self.test_fraction * 2**63}
        n_in_class = Counter(self._class_of(file) for file in self._files)
        n_held_out = Counter(self._class_of(file) for file in chosen)
        for name, n in n_held_out.items():
            if n == n_in_class[name]:  # by chance, as in a class of two images
                chosen.remove(max((file for file in chosen if self._class_of(file) == name), key=lambda x: place[x]))
        if not chosen and self.test_fraction and len(self._files) > 1:
            spare = [file for file in self._files if n_in_class[self._class_of(file)] > 1] or self._files
            chosen = {min(spare, key=lambda file: place[file])}
        return frozenset(chosen)

    def _load(self, split: SplitName) -> ImageSplit:
        files = [file for file in self._files if (file in self._held_out) == (split == "test")]
        number = {name: label for label, name in enumerate(self._class_names)}
        labels = torch.tensor([number.get(self._class_of(file), NULL) for file in files], dtype=torch.int64)
        return FolderSplit(self.root, files, labels, self.size, self.channels, self.crop)
