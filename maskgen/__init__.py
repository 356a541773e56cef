"""maskgen: a generative masked modelling engine for images and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskgen.core.version import __version__

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from maskgen.pipelines.base import Pipeline


def load(source: str, *, device: str = "auto") -> Pipeline:
    """The sampling pipeline of a checkpoint.

    Args:
        source: a zoo name (``maskgen zoo`` lists them), a checkpoint directory, a run directory (its newest
            checkpoint is taken) or a Hugging Face hub id ``owner/name``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        FileNotFoundError: nothing is there; the message lists what would be accepted.
        maskgen.checkpoints.checkpoint.CheckpointError: a file of the checkpoint is missing, truncated or altered.
    """
    import importlib

    pipeline: Any = importlib.import_module("maskgen.pipelines.load")  # by name: the library imports no program
    loaded: Pipeline = pipeline.load(source, device=device)
    return loaded
