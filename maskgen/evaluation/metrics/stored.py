"""Statistics on disk: files that other packages read, too, and the cache of what was computed before."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskgen.core.devices import from_first_rank, is_first_rank
from maskgen.core.errors import UserError, first_line
from maskgen.core.files import atomic
from maskgen.core.npz import read_npz
from maskgen.data.cache import default_cache_dir
from maskgen.data.image.sets import ImageSet
from maskgen.evaluation.metrics.frechet import Moments
from maskgen.evaluation.metrics.statistics import Progress, Statistics, collect
from maskgen.evaluation.protocols.features import Extractor, packages

log = logging.getLogger(__name__)


def cached(images: ImageSet, extractor: Extractor, keeps: bool = False, progress: Progress = iter) -> Statistics:
    """As `collect`, from `$MASKGEN_CACHE` if they were computed before."""
    facts = [images.digest(), extractor.identity, {**packages(), **extractor.versions}, keeps]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    file = default_cache_dir() / f"statistics-{key}.npz"
    is_there = is_first_rank() and file.is_file() and _is_of(file, images, extractor, keeps)
    if int(from_first_rank(torch.tensor(int(is_there)))):
        return read_statistics(file, name=images.name)
    found = collect(images, extractor, keeps, progress=progress)
    if is_first_rank():
        write_statistics(file, found)
    return found


def _is_of(file: Path, images: ImageSet, extractor: Extractor, keeps: bool) -> bool:
    """Whether a cached file is whole and holds statistics of these images by this extractor, whatever its name is."""
    try:
        found = read_statistics(file)
    except UserError as error:
        log.warning("%s cannot be read and is computed again: %s", file, error)
        return False
    is_same = (found.digest, dict(found.identity)) == (images.digest(), extractor.identity)
    if not is_same or (keeps and found.features is None):
        log.warning("%s holds statistics of other images or another network and is computed again", file)
        return False
    return True


def write_statistics(path: Path, statistics: Statistics) -> None:
    """An .npz that clean-fid, pytorch-fid and ADM read too (`mu`, `sigma`, `mu_s`, `sigma_s`), and where it is from."""
    facts = {
        "identity": dict(statistics.identity),
        "n": statistics.n,
        **{key: getattr(statistics, key) for key in ("name", "format", "digest", "floor")},
        **{key: getattr(statistics, key).tolist() for key in ("n_labelled", "n_right")},
    }
    arrays = {"mu": statistics.moments.mean.numpy(), "sigma": statistics.moments.cov.numpy()}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean.numpy(), "sigma_s": statistics.spatial.cov.numpy()}
    kept = {"features": statistics.features, "logits": statistics.logits}
    arrays |= {key: value.numpy() for key, value in kept.items() if value is not None}
    with atomic(path) as file:
        np.savez(file, allow_pickle=False, maskgen=np.array(json.dumps(facts)), **arrays)


def is_statistics(path: Path) -> bool:
    """Whether a file is an .npz with `mu` and `sigma`."""
    return path.suffix.lower() == ".npz" and path.is_file() and {"mu.npy", "sigma.npy"} <= members(path)


def identity_in(path: Path) -> dict[str, str] | None:
    """Identity of the extractor stored in a statistics file; None in a file of another package.

    Raises:
        UserError: damaged.
    """
    return dict(read_statistics(path).identity) if "maskgen.npy" in members(path) else None


def read_statistics(path: Path, identity: Mapping[str, str] | None = None, name: str | None = None) -> Statistics:
    """A statistics file, of this package or another's.

    Args:
        path: the .npz.
        identity: extractor that a file without one of its own is taken for.
        name: of the set, the file's by default.

    Raises:
        UserError: damaged, or its protocol is neither stored nor given.
    """
    arrays = {key: torch.from_numpy(value) for key, value in read_npz(path, _ARRAYS).items()}
    try:
        said = read_npz(path, ("maskgen",), "U").get("maskgen")
        facts = None if said is None else json.loads(str(said))
        if facts is None and identity is None:
            raise UserError(f"{path} does not name its protocol; give --protocol")
        facts = facts or {"identity": dict(identity or {}), "n": None}
        n = facts["n"]
        moments, *spatial = (
            _moments(arrays[f"mu{end}"], arrays[f"sigma{end}"], n) for end in ("", "_s") if f"mu{end}" in arrays
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no statistics file or damaged: {first_line(error)}") from None
    floor = facts.get("floor")
    return Statistics(
        name or str(path),
        facts["identity"],
        moments,
        spatial=spatial[0] if spatial else None,
        n=n,
        format=facts.get("format", ""),
        digest=facts.get("digest") or _digest(arrays["mu"], arrays["sigma"]),
        features=arrays.get("features"),
        logits=arrays.get("logits"),
        floor=(floor[0], floor[1]) if floor else None,
        **{key: torch.tensor(facts.get(key, []), dtype=torch.int64) for key in ("n_labelled", "n_right")},
    )


_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "logits")


def _digest(*arrays: Tensor) -> str:
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in arrays)).hexdigest()


def _moments(mean: Tensor, cov: Tensor, n: int | None) -> Moments:
    mean, cov = mean.double(), cov.double()
    return Moments.from_covariance(mean, cov) if n is None else Moments.from_state(n, mean, cov * (n - 1))


def members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is damaged or no archive: {first_line(error)}") from None
