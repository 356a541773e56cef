"""Images -> pooled features of a generator's network, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.files import atomic
from maskgen.core.pixels import to_float
from maskgen.core.version import __version__
from maskgen.data.cache import default_cache_dir
from maskgen.data.image.sets import ImageSet
from maskgen.evaluation.metrics.statistics import Progress
from maskgen.evaluation.protocols.features import packages

FORMAT = 1
BATCH = 250

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """What features are of.

    Attributes:
        name: of the features in a report: `mean of 49 tokens after the encoder`.
        identity: everything they depend on beside the images, for the cache.
        network: images (B, C, H, W) float in [0, 1] -> pooled features (B, D), in gradient mode or without.
        device: where it runs.
        module: what of it can be trained.
        pooling: how tokens are averaged, for the name of a score.
    """

    name: str
    identity: Mapping[str, object]
    network: Callable[[Tensor], Tensor]
    device: torch.device = field(default=torch.device("cpu"))
    module: nn.Module | None = None
    pooling: str = "mean"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, D) float32 on the CPU."""
        return self.network(to_float(images.to(self.device))).float().cpu()


def pixels(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as they are, (B, C H W): the baseline."""
    return images.flatten(1)


PIXELS = Encoder("raw pixels", {"network": "pixels"}, pixels)


def features_of(
    images: ImageSet,
    encoder: Encoder,
    progress: Progress = iter,
    batch_size: int = BATCH,
    cache_dir: Path | None = None,
) -> Tensor:
    """Features (N, D) float32 of a set of images, from `$MASKGEN_CACHE` if they were computed before.

    `progress` may wrap the batches in a bar.

    Raises:
        UserError: features that are not finite, or images of several sizes.
    """
    key = digest({"format": FORMAT, "images": images.digest(), **encoder.identity, **_versions()})
    file = (cache_dir or default_cache_dir()) / f"features-{key}.safetensors"
    found = _read(file, len(images), key)
    if found is None:
        batches = images.batches(batch_size, range(len(images)))
        found = torch.cat([encoder(batch) for _, batch in progress(batches)])
        if not bool(found.isfinite().all()):
            row = int((~found.isfinite()).any(1).nonzero()[0])
            raise UserError(f"{encoder.name} of {images.label(row)} is NaN or infinite; it cannot be probed")
        _write(file, found, key)
    return found


def digest(facts: Mapping[str, object]) -> str:
    """A name for what depends on these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _versions() -> dict[str, str]:
    """Of what features depend on beside weights and images."""
    return {"maskgen": __version__, **packages()}


def _read(file: Path, n: int, key: str) -> Tensor | None:
    """The features in a file; None if there is no such file, a damaged one or that of another key."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            features: Tensor = stored.get_tensor("features")
            is_whole = stored.metadata().get("crc32") == _stamp(features, key) and len(features) == n
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        log.warning("%s cannot be read and is computed again: %s", file, error)
        return None
    if not is_whole:
        log.warning("%s is altered or of other images and is computed again", file)
        return None
    return features


def _write(file: Path, features: Tensor, key: str) -> None:
    with atomic(file) as out:
        out.write(save({"features": features.contiguous()}, {"crc32": _stamp(features, key)}))


def _stamp(features: Tensor, key: str) -> str:
    """Checksum of the features and the key they are stored under, in one entry: the order of several is not fixed."""
    return f"{zlib.crc32(features.contiguous().numpy().data)} {key}"
