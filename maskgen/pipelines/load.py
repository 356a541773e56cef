"""From a checkpoint to the pipeline that samples from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import torch

from maskgen.checkpoints.checkpoint import Checkpoint, read_checkpoint
from maskgen.checkpoints.placement import DeviceMap, MaxMemory, Spread, spread_of
from maskgen.core.devices import pick_device
from maskgen.pipelines.arguments import wrong_type
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.joint import JointPipeline
from maskgen.pipelines.published import converted_checkpoint
from maskgen.pipelines.text import TextPipeline

Source = str | Path


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of `maskgen.load`."""

    device: str | torch.device
    dtype: torch.dtype | None
    device_map: DeviceMap | None
    max_memory: MaxMemory | None


class _Loaded(NamedTuple):
    """Arguments of a `Pipeline`."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype | None
    spread: Spread | None


def load(source: Source, **options: Unpack[LoadOptions]) -> ImagePipeline | TextPipeline | JointPipeline:
    """The pipeline of a checkpoint: see `maskgen.load`."""
    loaded = _read(source, options)
    recipe = loaded.checkpoint.recipe
    if recipe.streams is not None:
        return JointPipeline(*loaded)
    return (TextPipeline if recipe.kind == "text" else ImagePipeline)(*loaded)


def load_image(source: Source, **options: Unpack[LoadOptions]) -> ImagePipeline:
    """The pipeline of an image checkpoint: see `maskgen.load_image`."""
    return ImagePipeline(*_read(source, options))


def load_text(source: Source, **options: Unpack[LoadOptions]) -> TextPipeline:
    """The pipeline of a text checkpoint: see `maskgen.load_text`."""
    return TextPipeline(*_read(source, options))


def joint_pipeline(source: Source, **options: Unpack[LoadOptions]) -> JointPipeline:
    """The pipeline of a checkpoint of several streams: see `maskgen.load_joint`."""
    return JointPipeline(*_read(source, options))


def _read(source: Source, options: LoadOptions) -> _Loaded:
    if not isinstance(source, str | Path):
        raise wrong_type("source", source, "a zoo name, a directory or a hub id")
    device = options.get("device", "auto")
    spread = spread_of(device, options.get("device_map"), options.get("max_memory"))
    place = pick_device(device)
    checkpoint = read_checkpoint(converted_checkpoint(str(source)) or source)
    return _Loaded(checkpoint, place, options.get("dtype"), spread)
