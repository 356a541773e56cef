"""Local path or hub id: decided here, locally, because an offline hub call costs half a minute of retries."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(source: str) -> bool:
    """Whether a name can only be meant for the hub: `owner/name`, and neither a path nor written like one."""
    is_pathlike = source.startswith((".", "/", "~")) or Path(source).expanduser().exists()
    return not is_pathlike and _HUB_ID.fullmatch(source) is not None


def hub_or_folder(source: str) -> str:
    """The folder a local source means, or the hub id as it is.

    Raises:
        FileNotFoundError: neither; nothing is asked of the network.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if is_hub_id(source):
        return source
    raise FileNotFoundError(f"no directory {source!r}, and it is not a hub id (owner/name)")


def download(source: str, allow: list[str]) -> Path:
    """The local folder of a hub repository, its files matching `allow` downloaded or taken from the cache.

    Raises:
        FileNotFoundError: the hub has none, or cannot be reached and the cache has none.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=allow))
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise FileNotFoundError(
            f"no directory {source!r} here, and the Hugging Face hub did not give it{offline}: {type(error).__name__}"
        ) from error
