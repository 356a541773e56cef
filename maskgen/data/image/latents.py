"""Posteriors of an autoencoder's latents, computed once and stored: their moments, not one draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskgen.data.base import ImageSplit
from maskgen.data.cache import ENCODE_BATCH, FORMAT, cached, write_tokens
from maskgen.data.loader import in_order
from maskgen.data.shards import Encoded, rows_of
from maskgen.tokenizers.image.latent import KLTokenizer

DTYPE = "float16"


class LatentData(Dataset[tuple[Tensor, Tensor]]):
    """Moments (N, V, L, 2 D) in a memory-mapped file, V = 2 with the mirrored image; `labels` (N,) int64."""

    def __init__(self, file: Path, labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.file, self.labels, self.shape = file, labels, shape
        self._moments = np.memmap(file, DTYPE, mode="r", shape=(len(labels), *shape))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Moments (V, L, 2 D) and label ()."""
        moments, labels = self.__getitems__([range(len(self))[index]])
        return moments[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Moments (B, V, L, 2 D) float32 and labels (B,) int64."""
        rows = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self._moments[rows].astype(np.float32)), self.labels[torch.from_numpy(rows)]

    def __reduce__(self) -> tuple[object, ...]:
        return LatentData, (self.file, self.labels, self.shape)  # workers map the file, not copy it


def latent_data(
    split: ImageSplit,
    tokenizer: KLTokenizer,
    *,
    has_flips: bool = False,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    parts: Callable[[], Sequence[Encoded]] = tuple,
) -> LatentData:
    """The moments of a split, from the cache, or computed on `device` and stored as float16.

    The header of the cache names images, autoencoder (its source, and a hash of weights, scale and patch) and flips,
    and has a checksum, so that those of other images or another autoencoder are never used.

    Args:
        split, cache_dir, device, progress: see `token_data`.
        tokenizer: the autoencoder.
        has_flips: also of the mirrored images.
        parts: returns moments of the split's parts, to be joined instead of encoding.

    Raises:
        DataError: an unreadable image, or a cache directory that cannot be written.
        DiskFull: no room for the moments.
    """
    shape = (1 + has_flips, tokenizer.grid[0] * tokenizer.grid[1], 2 * tokenizer.token_width)

    def make(file: Path) -> dict[str, int]:
        tokenizer.to(device).eval()
        pieces = parts()
        made = rows_of(pieces, ENCODE_BATCH) if pieces else _moments(split, tokenizer, has_flips, device, progress)
        crc32 = write_tokens(file, made, DTYPE)
        return {"length": shape[0] * shape[1] * shape[2], "crc32": crc32}

    file, _ = cached(_header(split, tokenizer, shape), cache_dir, make)
    return LatentData(file, split.labels, shape)


def _header(split: ImageSplit, tokenizer: KLTokenizer, shape: tuple[int, ...]) -> dict[str, object]:
    """What identifies the moments of a split in the cache."""
    return {
        "format": FORMAT,
        "data": split.fingerprint(),
        "autoencoder": tokenizer.source,
        "tokenizer": tokenizer.fingerprint(),
        "scale": tokenizer.scale,
        "moments": list(shape),
        "dtype": DTYPE,
        "rows": len(split),
    }


@torch.inference_mode()
def _moments(
    split: ImageSplit, tokenizer: KLTokenizer, has_flips: bool, device: torch.device | str, progress: bool
) -> Iterator[Tensor]:
    """(B, V, L, 2 D) on the CPU, batch by batch."""
    with tqdm(total=len(split), desc="latents", unit="image", disable=not progress) as bar:
        for images, _ in in_order(split, ENCODE_BATCH):
            x = images.to(device).float() / 255
            views = [x, x.flip(-1)] if has_flips else [x]
            yield torch.stack([tokenizer.moments(view) for view in views], 1).cpu()
            bar.update(len(images))
