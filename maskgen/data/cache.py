"""Tokens of a data set, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgen.data.images import DataError, ImageSplit
from maskgen.data.loader import in_order
from maskgen.files import atomic

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

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenData, (self.file, self.labels, self.length, self.dtype)  # workers map the file, not copy it


def default_cache_dir() -> Path:
    """`$MASKGEN_CACHE`, or `~/.cache/maskgen`."""
    return Path(os.environ.get("MASKGEN_CACHE") or "~/.cache/maskgen").expanduser()


def token_data(
    split: ImageSplit,
    tokenizer: ImageTokenizer,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> TokenData:
    """The tokens of a split, from the cache if it has them; else they are made on `device` and kept.

    The tokenizer is moved to `device` and put in evaluation mode when it is needed.

    Raises:
        DataError: an unreadable image, or a cache directory that can't be written.
        ValueError: the tokenizer gives tokens outside its vocabulary.
    """
    header: dict[str, Any] = {
        "format": FORMAT,
        "data": split.fingerprint(),
        "tokenizer": tokenizer.fingerprint(),
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "rows": len(split),
    }
    key = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:24]
    file = (cache_dir or default_cache_dir()) / f"tokens-{key}.bin"
    found = _found(file, header)
    if found is None:
        found = header | _encode(file, split, tokenizer, torch.device(device), header["dtype"], progress)
        _write(file.with_suffix(".json"), lambda out: out.write(json.dumps(found, indent=1).encode()))
    return TokenData(file, split.labels, found["length"], found["dtype"])


def _found(file: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """The stored header if the cache is whole."""
    header_file = file.with_suffix(".json")
    if not header_file.exists():
        return None
    try:
        stored: dict[str, Any] = json.loads(header_file.read_bytes())
        if {key: stored.get(key) for key in header} != header:
            raise ValueError("its header is of other data")
        size = stored["rows"] * stored["length"] * np.dtype(stored["dtype"]).itemsize
        if file.stat().st_size != size:
            raise ValueError(f"{file.stat().st_size} bytes instead of {size}")
        if zlib.crc32(np.memmap(file, np.uint8, mode="r").data) != stored["crc32"]:
            raise ValueError("its content has changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("token cache %s is damaged and made again: %s", file, error)
        return None
    return stored


def _encode(
    file: Path, split: ImageSplit, tokenizer: ImageTokenizer, device: torch.device, dtype: str, progress: bool
) -> dict[str, int]:
    """Write the tokens; the sequence length and checksum."""
    log.info("encoding %d images into %s", len(split), file)
    tokenizer.to(device).eval()
    facts = {"length": 0, "crc32": 0}

    def fill(out: IO[bytes]) -> None:
        with tqdm(total=len(split), desc="tokens", unit="image", disable=not progress) as bar:
            for tokens in _tokens(split, tokenizer, device):
                raw = tokens.numpy().astype(dtype).tobytes()
                out.write(raw)
                facts.update(length=tokens.shape[1], crc32=zlib.crc32(raw, facts["crc32"]))
                bar.update(len(tokens))

    _write(file, fill)
    return facts


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


def _write(file: Path, fill: Callable[[IO[bytes]], object]) -> None:
    try:
        with atomic(file) as out:
            fill(out)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error}; set $MASKGEN_CACHE to a directory that can be") from error
