"""The autoencoder that a generator names by a folder: its digest when the checkpoint was made, and now."""

from __future__ import annotations

from pathlib import Path

from maskgen.checkpoints.manifest import CheckpointError, stamp
from maskgen.recipes.schema import Recipe


def source_digests(recipe: Recipe) -> dict[str, str] | None:
    """SHA-256 of the weights of an autoencoder that a recipe names by a local folder; None for others."""
    folder = Path(_source(recipe))
    if not _source(recipe) or not folder.is_dir():
        return None
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): str(stamp(path)["sha256"]) for path in files}


def verify_autoencoder(path: Path, recipe: Recipe, recorded: object) -> None:
    """Hold the autoencoder that a checkpoint names against the digest it has recorded, if it has.

    Raises:
        CheckpointError: it is missing or another one.
    """
    if recorded is not None and source_digests(recipe) != recorded:
        raise CheckpointError(
            f"{path}: its autoencoder {_source(recipe)} is missing or another one than when it was made"
        )


def _source(recipe: Recipe) -> str:
    """The folder or hub id of an autoencoder that is no checkpoint; empty for other tokenizers."""
    spec = recipe.tokenizer
    return str(spec["source"]) if isinstance(spec, dict) and "source" in spec else ""
