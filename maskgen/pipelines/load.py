"""From a checkpoint to the pipeline that samples from it."""

from __future__ import annotations

from pathlib import Path

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.pipelines.base import Pipeline
from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.text import TextPipeline


def load(source: str | Path, *, device: str = "auto") -> Pipeline:
    """The pipeline of a checkpoint: see `maskgen.load`."""
    checkpoint = read_checkpoint(source)
    kind = TextPipeline if checkpoint.recipe.is_text else ImagePipeline
    return kind(checkpoint, pick_device(device))
