"""Local path or id on the Hugging Face hub: decided locally, as an offline hub call costs half a minute of retries."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(source: str) -> bool:
    """Whether a name is an id on the hub: `owner/name`, neither an existing path nor written like one."""
    is_id = _HUB_ID.fullmatch(source) is not None and not source.startswith((".", "/", "~"))
    return is_id and not Path(source).exists()


def hub_or_folder(source: str) -> str:
    """The path of a local folder, or the hub id unchanged; the network is not used.

    Raises:
        FileNotFoundError: neither a folder nor a hub id.
    """
    try:
        path = local_path(source)
    except UserError as error:
        raise FileNotFoundError(str(error)) from None
    if path.is_dir():
        return str(path)
    if is_hub_id(source):
        return source
    raise FileNotFoundError(f"no directory {source!r}, and it is not a hub id (owner/name)")


def model_files(source: str) -> tuple[str, str | None]:
    """Where the files of a language model are: folder or hub id, and the name of the GGUF file if it is one.

    Args:
        source: folder, hub id, GGUF file, or `package:NAME`, an installed package with one GGUF file in it.

    Raises:
        UserError: neither of these.
    """
    if source.startswith("package:"):
        spec = find_spec(source.removeprefix("package:"))
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
        if len(found) != 1:
            state = f"has {len(found)} GGUF files" if spec is not None else "is not installed"
            raise UserError(f"{source}: the package {state}; pip install {source.removeprefix('package:')}")
        return str(found[0].parent), found[0].name
    if source.endswith(".gguf"):
        file = local_path(source)
        if not file.is_file():
            raise UserError(f"no file {source}")
        return str(file.parent), file.name
    try:
        return hub_or_folder(source), None
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


def without_advice(error: Exception) -> str:
    """First line of an error of a library that loads models; the advice to run code from the folder is replaced."""
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own, which is never run; choose a model that the library itself has"
    return first_line(error)


def download(source: str, allow: list[str]) -> Path:
    """The local folder of a hub repository with its files matching `allow`, downloaded or from the hub's cache.

    Raises:
        FileNotFoundError: no such repository, or no connection and no cached copy.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=allow))
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise FileNotFoundError(
            f"no local directory {source!r}, and no download from the Hugging Face hub{offline}: {type(error).__name__}"
        ) from error
