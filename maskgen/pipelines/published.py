"""Published checkpoints that `maskgen.load` converts by itself: folders and hub repositories of known layouts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from maskgen.checkpoints.convert.conversion import run
from maskgen.checkpoints.convert.files import ENDINGS
from maskgen.checkpoints.locate import RECIPE
from maskgen.checkpoints.manifest import newest_in
from maskgen.core.errors import UserError
from maskgen.core.files import local_path, require_writable
from maskgen.core.hub import download, is_hub_id
from maskgen.core.lock import RunLock
from maskgen.data.cache import default_cache_dir
from maskgen.recipes.shipped import zoo_names

FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
"""What is downloaded of a hub repository: no pickles; those are downloaded by hand and given to `maskgen convert`."""


def converted_checkpoint(source: str) -> Path | None:
    """The checkpoint made of a published folder or hub repository, from `$MASKGEN_CACHE` if it was made before.

    None for what is no published checkpoint: a name of the zoo, a checkpoint, a run, or nothing at all.

    Raises:
        UserError: it is in no known layout, or needs options of `maskgen convert`.
    """
    folder = _published(source)
    if folder is None:
        return None
    target = default_cache_dir() / "converted" / f"{source.strip('/').replace('/', '--')[-60:]}-{_state_of(folder)}"
    if (target / RECIPE).is_file():
        return target
    require_writable(target.parent, str(target.parent))
    with RunLock(target.parent):
        if not (target / RECIPE).is_file():
            try:
                run(str(folder), str(target))
            except UserError as error:
                raise UserError(f"{error}\n`maskgen convert {folder} --output DIR` has options for this") from None
    return target


def _published(source: str) -> Path | None:
    """The folder of a published checkpoint, downloaded if it is on the hub."""
    if source in zoo_names() or "\0" in source:
        return None
    path = local_path(source)
    if path.is_dir():
        is_ours = (path / RECIPE).is_file() or newest_in(path) is not None
        return None if is_ours or not _has_weights(path) else path
    if not is_hub_id(source):
        return None
    try:
        folder = download(source, FILES)
    except FileNotFoundError:
        return None  # the reader of checkpoints says so
    return None if (folder / RECIPE).is_file() or not _has_weights(folder) else folder


def _has_weights(folder: Path) -> bool:
    known = [folder / "config.json", folder / "model_index.json"]
    return any(path.is_file() for path in known) and any(path.suffix in ENDINGS for path in folder.rglob("*"))


def _state_of(folder: Path) -> str:
    """Sixteen hexadecimal digits for place, names, sizes and times of the files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
