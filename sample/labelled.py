"""Labelled images to probe on: a data set by name, as YAML, or a folder."""

from __future__ import annotations

from collections.abc import Mapping

from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.predictions import NULL
from maskgen.core.yaml_reader import YamlError, read_yaml
from maskgen.data.base import DATASETS, ImageSource, SplitName
from maskgen.data.image.sets import SplitSet


def labelled_split(source: ImageSource, name: SplitName, most: int | None) -> SplitSet:
    images = SplitSet(source.split(name), f"{source.name} {name} images", most)
    if not source.classes or images.labels is None or bool((images.labels == NULL).any()):
        raise UserError(f"--data: {images.name} have no labels, or not all of them; a probe needs one for each")
    if len(images) < 2:
        raise UserError(f"--data: {images.name} are {len(images)}; a probe needs at least 2")
    return images


def open_data(name: str, image_shape: tuple[int, int, int]) -> ImageSource:
    """A data set by name or as YAML (`{type: fashion_mnist, n_train: 1000}`), or a folder, brought to a shape.

    Raises:
        UserError: unknown, text, or missing.
    """
    spec: str | Mapping[str, object]
    if local_path(name).is_dir():
        spec = {"type": "folder", "path": name, "size": image_shape[1], "channels": image_shape[0]}
    else:
        try:
            spec = read_yaml(name)
        except YamlError:
            raise UserError(f"--data {name!r} is neither a folder, a data set's name nor YAML") from None
    found = DATASETS.build(spec, "--data")
    if not isinstance(found, ImageSource):
        raise UserError(f"--data {name} has no images")
    return found
