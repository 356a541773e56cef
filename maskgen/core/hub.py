"""Local path or id on the Hugging Face hub: decided locally, as an offline hub call costs half a minute of retries."""

from __future__ import annotations

import os
import re
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
