"""`maskgen fid A B`: two sets of images by a named protocol; `maskgen statistics`: one of them on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from maskgen.checkpoints.checkpoint import newest_in, read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.hub import is_hub_id
from maskgen.data.image.archives import ARRAYS, NpzSet
from maskgen.data.image.opening import open_images
from maskgen.data.image.sets import ImageSet
from maskgen.evaluation.metrics.scored import (
    FEATURE_METRICS,
    Scored,
    default_metrics,
    keeps_features,
    measure,
    notes,
    require_able,
)
from maskgen.evaluation.metrics.statistics import Collector, Statistics
from maskgen.evaluation.metrics.stored import (
    cached,
    identity_in,
    is_statistics,
    members,
    read_statistics,
    write_statistics,
)
from maskgen.evaluation.protocols.features import Extractor
from maskgen.evaluation.report import Entry, Report, publish
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.image import ImagePipeline
from maskgen.recipes.shipped import INFO, zoo_names

from .draws import arm_of
from .judges import pick_extractor
from .pictures import check_writable
from .progress import progress_bar

DEFAULT = "clean-fid"


def run(
    a: str,
    b: str,
    /,
    *,
    protocol: str | None = None,
    weights: str | None = None,
    metrics: Sequence[str] = (),
    num: int = 10_000,
    seed: int = 0,
    output: str | None = None,
    device: str = "auto",
) -> str:
    """The table of A against the reference B; each a folder, `.zip`, `.npz` of images or statistics, `DATASET:SPLIT`,
    or a checkpoint, of which `num` samples are drawn.

    Raises:
        UserError: a side, protocol, metric or output that cannot be used, or two sides of different protocols.
    """
    path = check_writable(output, (".json",)) if output else None
    place = pick_device(device)
    _require_there(a, b)  # before any weights are looked for
    extractor = _extractor(a, b, protocol, weights, place)
    chosen = tuple(metrics)
    if not chosen and extractor is not None:
        chosen = default_metrics(extractor.protocol)
    keeps = keeps_features(chosen)
    side = _Sides(extractor, _identity(extractor, (a, b), protocol), num, seed, place, keeps)
    reference = side.statistics(b)
    if is_checkpoint(a):
        for name in chosen if metrics else ():
            require_able(name, reference, num)
    samples = side.statistics(a)
    scored = Scored(extractor, samples, reference, a, side.made.get(a, {}))
    score = scored.distance()
    others = [entry for name in chosen if metrics or _is_available(name, scored) for entry in measure(name, scored)]
    return publish(
        Report(score, others=[*_floor(scored), *others], notes=(*notes(scored, chosen, others), *side.notes)), path
    )


def statistics(source: str, output: str, /, protocol: str | None, weights: str | None, device: str = "auto") -> str:
    """Write the statistics of a set of images to an `.npz`; its path.

    Raises:
        UserError: images, protocol or output that cannot be used.
    """
    path = check_writable(output, (".npz",))
    images = open_images(source)  # before any weights are looked for
    extractor = pick_extractor(protocol or DEFAULT, weights, pick_device(device))
    write_statistics(path, cached(images, extractor, progress=progress_bar(source)))
    return str(path)


def _require_there(*sides: str) -> None:
    """Raises:
    UserError: a side that is neither a statistics file, a checkpoint nor a set of images.
    """
    for side in sides:
        if not is_statistics(local_path(side)) and not is_checkpoint(side):
            open_images(side)


def _extractor(a: str, b: str, protocol: str | None, weights: str | None, place: torch.device) -> Extractor | None:
    """The extractor; None where both sides are statistics already.

    Raises:
        UserError: a foreign file and no --protocol, or another protocol than a file's.
    """
    paths = [local_path(side) for side in (a, b)]
    said = [_protocol_of(path, protocol) for path in paths if is_statistics(path)]
    if all(is_statistics(path) for path in paths) and not _has_images(paths[0]):
        return None
    return pick_extractor(protocol or next((one for one in said if one), DEFAULT), weights, place)


def _protocol_of(path: Path, protocol: str | None) -> str | None:
    """Protocol stored in a statistics file, None in one of another package; it must be the given one."""
    identity = identity_in(path)
    if identity is not None:
        if protocol not in (None, identity["protocol"]) and Path(str(protocol)).name != identity["protocol"]:
            raise UserError(
                f"--protocol {protocol}: {path} is of {identity['protocol']}, so they do not compare; leave it out"
            )
        return identity["protocol"]
    if "mu_s.npy" in members(path) and protocol != "adm":
        raise UserError(f"{path} holds mu_s, so it is ADM's and compares with that protocol only; give --protocol adm")
    if protocol is None:
        raise UserError(f"{path} does not name its protocol; give --protocol")
    return None


def _identity(extractor: Extractor | None, sides: Sequence[str], protocol: str | None) -> Mapping[str, str]:
    """Identity assumed for a file of another package: that of the other side."""
    if extractor is not None:
        return extractor.identity
    said = [one for side in sides if (one := identity_in(local_path(side))) is not None]
    return said[0] if said else {"protocol": str(protocol)}


def _has_images(path: Path) -> bool:
    return bool({f"{name}.npy" for name in ARRAYS} & members(path))


@dataclass
class _Sides:
    """Makes the statistics of either side; `made` and `notes` go into the report.

    `identity` is assumed for files of other packages.
    """

    extractor: Extractor | None
    identity: Mapping[str, str]
    num: int
    seed: int
    device: torch.device
    keeps: bool

    def __post_init__(self) -> None:
        self.made: dict[str, dict[str, object]] = {}
        self.notes: list[str] = []

    def statistics(self, source: str) -> Statistics:
        path = local_path(source)
        if is_statistics(path):
            return self._from_file(path, source)
        assert self.extractor is not None
        if is_checkpoint(source):
            return self._sampled(source, self.extractor)
        return self._seen(open_images(source), self.extractor)

    def _seen(self, images: ImageSet, extractor: Extractor) -> Statistics:
        return cached(images, extractor, self.keeps, progress_bar(images.name))

    def _from_file(self, path: Path, source: str) -> Statistics:
        found = read_statistics(path, self.identity, source)
        if found.n is None:
            self.notes.append(
                f"{source} does not name its protocol or size; taken to be of {found.identity['protocol']}"
            )
        if self.keeps and found.features is None and self.extractor is not None and _has_images(path):
            images = self._seen(NpzSet(path, source), self.extractor)  # ADM's reference batches hold both
            found = replace(found, features=images.features, logits=images.logits)
        return found

    def _sampled(self, source: str, extractor: Extractor) -> Statistics:
        pipeline = ImagePipeline(read_checkpoint(source), self.device)
        arm = arm_of(pipeline, pipeline.with_sampler(), self.seed)
        collector = Collector(extractor, self.keeps)
        for draw in tqdm(arm.draw(self.num), source, disable=None):
            collector.update(draw.images, draw.labels, draw.first)
        sampler = {"checkpoint": source, "step": pipeline.checkpoint.step, **settings_of(arm.generator)}
        self.made[source] = {"seed": self.seed, "sampler": sampler}
        return collector.result(source, "samples", arm.key)


def is_checkpoint(source: str) -> bool:
    """Whether a name is one of the zoo, of a checkpoint or run directory, or a hub id."""
    path = local_path(source)
    is_local = path.is_dir() and ((path / INFO).is_file() or newest_in(path) is not None)
    return source in zoo_names() or is_local or (is_hub_id(source) and ":" not in source)


def _is_available(name: str, scored: Scored) -> bool:
    """A default metric of a protocol is left out, not refused, where a statistics file does not allow it."""
    return FEATURE_METRICS.build(name).is_available(scored)


def _floor(scored: Scored) -> list[Entry]:
    """How far apart the halves of the reference are: no set of that many images is expected to be closer."""
    floor, of = scored.reference.floor, f"halves of {scored.reference.name} (floor)"
    if floor is None:
        return []
    name = scored.distance().name
    return [scored.entry(name, floor[0], of=of, n_samples=floor[1], n_reference=floor[1], format=None)]
