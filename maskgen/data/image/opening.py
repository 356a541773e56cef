"""Opens a set of images from what a user names: a folder, a .zip, an .npz, or a split of a data set."""

from __future__ import annotations

from typing import Any

from maskgen.core.files import local_path
from maskgen.data.base import DATASETS, DataError, ImageSource
from maskgen.data.image.archives import NpzSet, ZipSet
from maskgen.data.image.sets import FolderSet, ImageSet, SplitSet


def open_images(source: str) -> ImageSet:
    """The images of a folder, a `.zip`, an `.npz`, or `DATASET:SPLIT` such as `fashion_mnist:test`.

    Raises:
        DataError: nothing there, or no image in it.
    """
    path = local_path(source)
    if path.is_dir():
        images: ImageSet = FolderSet(path, source)
    elif path.is_file() and path.suffix.lower() in (".zip", ".npz"):
        images = (ZipSet if path.suffix.lower() == ".zip" else NpzSet)(path, source)
    elif (parts := source.partition(":"))[0] in DATASETS.names() and parts[2] in ("train", "test"):
        images = SplitSet(_image_source(parts[0]).split(parts[2]), source)  # type: ignore[arg-type]
    else:
        raise DataError(f"{source!r} is no folder, .zip, .npz or DATASET:SPLIT (fashion_mnist:test)")
    return images


def _image_source(name: str) -> ImageSource:
    source: Any = DATASETS.build(name)
    if not isinstance(source, ImageSource):
        raise DataError(f"data set {name} has no images")
    return source
