"""From a checkpoint to the pipeline that samples from it."""

from __future__ import annotations

from pathlib import Path

import torch

from maskgen.checkpoints.checkpoint import Checkpoint, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.pipelines.arguments import wrong_type
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.published import converted_checkpoint
from maskgen.pipelines.text import TextPipeline

Source = str | Path


def load(
    source: Source, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> ImagePipeline | TextPipeline:
    """The pipeline of a checkpoint: see `maskgen.load`."""
    checkpoint = _read(source)
    kind = TextPipeline if checkpoint.recipe.kind == "text" else ImagePipeline
    return kind(checkpoint, pick_device(device), dtype)


def load_image(
    source: Source, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> ImagePipeline:
    """The pipeline of an image checkpoint: see `maskgen.load_image`."""
    return ImagePipeline(_read(source), pick_device(device), dtype)


def load_text(source: Source, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> TextPipeline:
    """The pipeline of a text checkpoint: see `maskgen.load_text`."""
    return TextPipeline(_read(source), pick_device(device), dtype)


def _read(source: Source) -> Checkpoint:
    if not isinstance(source, str | Path):
        raise wrong_type("source", source, "a zoo name, a directory or a hub id")
    return read_checkpoint(converted_checkpoint(str(source)) or source)
