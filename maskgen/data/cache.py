"""Tokens of a data set, encoded once and stored on disk.

A stored file counts only if the header beside it names the same data, tokenizer and shape, and its content has the
checksum in that header: a file that was renamed, exchanged or damaged is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgen.core.errors import DiskFull, first_line
from maskgen.core.files import atomic, is_disk_full, local_path, read_json, remove_stale_drafts
from maskgen.data.base import DataError, ImageSplit
from maskgen.data.loader import in_order
from maskgen.data.shards import Encoded, rows_of

if TYPE_CHECKING:
    from maskgen.tokenizers.base import ImageTokenizer

FORMAT = 1
ENCODE_BATCH = 256

log = logging.getLogger(__name__)


class TokenData(Dataset[tuple[Tensor, Tensor]]):
    """Tokens (N, L) in a memory-mapped file, with `labels` (N,) int64."""

    def __init__(self, file: Path, labels: Tensor, length: int, dtype: str) -> None:
        self.file, self.labels, self.length, self.dtype = file, labels, length, dtype
        self._tokens = np.memmap(file, dtype, mode="r", shape=(len(labels), length))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64 and label () int64."""
        tokens, labels = self.__getitems__([range(len(self))[index]])
        return tokens[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 and labels (B,) int64."""
        rows = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self._tokens[rows].astype(np.int64)), self.labels[torch.from_numpy(rows)]

    def __reduce__(self) -> tuple[object, ...]:
        return TokenData, (self.file, self.labels, self.length, self.dtype)  # workers map the file, not copy it


def default_cache_dir() -> Path:
    """`$MASKGEN_CACHE`, or `~/.cache/maskgen`."""
    return local_path(os.environ.get("MASKGEN_CACHE") or "~/.cache/maskgen")


def token_data(
    split: ImageSplit,
    tokenizer: ImageTokenizer,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    parts: Callable[[], Sequence[Encoded]] = tuple,
) -> TokenData:
    """The tokens of a split, from the cache, or encoded on `device` and stored.

    Args:
        split: the images.
        tokenizer: moved to `device` and put in evaluation mode if it has to encode.
        cache_dir: default `default_cache_dir()`.
        device: where it encodes.
        progress: show a progress bar.
        parts: returns tokens of the split's parts, to be joined instead of encoding.

    Raises:
        DataError: an unreadable image, or a cache directory that cannot be written.
        DiskFull: no room for the tokens.
        ValueError: the tokenizer gives tokens outside its vocabulary.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    header: dict[str, object] = {
        "format": FORMAT,
        "data": split.fingerprint(),
        "tokenizer": tokenizer.fingerprint(),
        "dtype": dtype,
        "rows": len(split),
    }
    file, found = cached(
        header,
        cache_dir,
        lambda file: _encode(file, split, tokenizer, torch.device(device), dtype, progress, parts),
    )
    return TokenData(file, split.labels, found["length"], found["dtype"])


def token_dtype(vocab_size: int) -> str:
    """The narrower of the two types in which tokens are stored that holds the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def cached(
    header: dict[str, object], cache_dir: Path | None, make: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The file of tokens that a header describes, and the header with the facts that `make` returned.

    Args:
        header: identity of the tokens, with `rows` and `dtype`.
        cache_dir: default `default_cache_dir()`.
        make: writes the file and returns at least `length`, tokens in a row, and `crc32` of the file; called if the
            cache has no such file, or one of other content.

    Raises:
        DataError: the cache directory cannot be written.
        DiskFull: no room in it.
    """
    key = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:24]
    file = (cache_dir or default_cache_dir()) / f"tokens-{key}.bin"
    found = _found(file, header)
    if found is None:
        remove_stale_drafts(file.parent)
        found = header | make(file)
        write_cache(file.with_suffix(".json"), lambda out: out.write(json.dumps(found, indent=1).encode()))
    return file, found


def write_tokens(file: Path, batches: Iterable[Tensor], dtype: str) -> int:
    """Write tokens one after the other, the whole file or none; returns its crc32.

    Raises:
        DataError: it cannot be written.
        DiskFull: no room for it.
    """
    crc32 = 0

    def fill(out: IO[bytes]) -> None:
        nonlocal crc32
        for tokens in batches:
            raw = tokens.numpy().astype(dtype).tobytes()
            out.write(raw)
            crc32 = zlib.crc32(raw, crc32)

    write_cache(file, fill)
    return crc32


def _found(file: Path, header: dict[str, object]) -> dict[str, Any] | None:
    """The stored header, if it describes these tokens and the file is whole."""
    header_file = file.with_suffix(".json")
    if not header_file.exists():
        return None
    try:
        stored = read_json(header_file)
        if {key: stored.get(key) for key in header} != header:
            raise ValueError("its header describes other data")
        size = stored["rows"] * stored["length"] * np.dtype(stored["dtype"]).itemsize
        if file.stat().st_size != size:
            raise ValueError(f"{file.stat().st_size} bytes instead of {size}")
        if zlib.crc32(np.memmap(file, np.uint8, mode="r").data) != stored["crc32"]:
            raise ValueError("its content has changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("token cache %s is damaged and will be encoded again: %s", file, error)
        return None
    return stored


def _encode(
    file: Path,
    split: ImageSplit,
    tokenizer: ImageTokenizer,
    device: torch.device,
    dtype: str,
    progress: bool,
    parts: Callable[[], Sequence[Encoded]],
) -> dict[str, int]:
    """Encode and write the tokens; returns sequence length and checksum."""
    log.info("encoding %d images into %s", len(split), file)
    tokenizer.to(device).eval()
    length = 0

    def batches() -> Iterator[Tensor]:
        nonlocal length
        with tqdm(total=len(split), desc="tokens", unit="image", disable=not progress) as bar:
            pieces = parts()
            for tokens in rows_of(pieces, ENCODE_BATCH) if pieces else _tokens(split, tokenizer, device):
                length = tokens.shape[1]
                yield tokens
                bar.update(len(tokens))

    crc32 = write_tokens(file, batches(), dtype)
    return {"length": length, "crc32": crc32}


@torch.inference_mode()
def _tokens(split: ImageSplit, tokenizer: ImageTokenizer, device: torch.device) -> Iterator[Tensor]:
    """Tokens (B, L) int64 on the CPU, batch by batch."""
    for images, _ in in_order(split, ENCODE_BATCH):
        tokens = tokenizer.encode(images.to(device).float() / 255).cpu()
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= tokenizer.vocab_size:
            raise ValueError(
                f"the tokenizer gave tokens {low} to {high}, its vocabulary is 0 to {tokenizer.vocab_size - 1}"
            )
        yield tokens


def write_cache(file: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file of the cache atomically by `fill`.

    Raises:
        DataError: it cannot be written.
        DiskFull: no room for it.
    """
    try:
        with atomic(file) as out:
            fill(out)
    except OSError as error:
        way = "set $MASKGEN_CACHE to a directory"
        if is_disk_full(error):
            raise DiskFull(f"no room for {file}: {error.strerror}; make room, or {way} on a larger disk") from error
        raise DataError(f"cannot write {file}: {first_line(error)}; {way} that can be written") from error
