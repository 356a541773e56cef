"""Names of the files of a checkpoint, and where a checkpoint is."""

from __future__ import annotations

from pathlib import Path

from maskgen.checkpoints.manifest import CheckpointError, newest_in
from maskgen.core.errors import closest
from maskgen.core.files import local_path
from maskgen.core.hub import download, is_hub_id
from maskgen.recipes.shipped import INFO, zoo_names, zoo_path
from maskgen.tokenizers.text.specials import CONFIG

MODEL, TRAINING, RECIPE, TOKENIZER = "model.safetensors", "training.safetensors", "recipe.yaml", "tokenizer.json"


def locate(source: str) -> Path:
    """The directory of a checkpoint: a name of the zoo, a directory, a run directory (its newest) or a hub id.

    Raises:
        CheckpointError: there is none.
    """
    if not source:
        raise CheckpointError("'' names no checkpoint: give a directory or one of the zoo")
    if source in zoo_names():
        return zoo_path(source)
    path = local_path(source)
    if path.is_dir():
        newest = newest_in(path)
        return path if newest is None else newest
    if path.is_file():
        raise CheckpointError(f"{source} is a file; a checkpoint is a directory with {MODEL} and {RECIPE}")
    if is_hub_id(source):
        try:
            return download(source, [f"**{name}" for name in (MODEL, RECIPE, INFO, TOKENIZER, CONFIG)])
        except FileNotFoundError as error:
            raise CheckpointError(str(error)) from None
    if "/" in source:
        raise CheckpointError(
            f"no checkpoint {source!r}: no such directory; train it first, `maskgen train RECIPE --output {source}` (a "
            f"tokenizer by a recipe of tokenizer/), or name one of the zoo: {', '.join(zoo_names())}"
        )
    raise CheckpointError(
        f"no checkpoint {source!r}: neither a directory nor one of the zoo; {closest(source, zoo_names())}the zoo has "
        f"{', '.join(zoo_names())}"
    )
