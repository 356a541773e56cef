"""Checkpoints of low-rank changes: they hold what was trained, and name the network it was trained on by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskgen.checkpoints.filling import Where, fill_mapped, on_cpu
from maskgen.checkpoints.locate import MODEL, TRAINING, locate
from maskgen.checkpoints.manifest import CheckpointError
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import first_line
from maskgen.nn.lora import LoraSettings, add_lora
from maskgen.recipes.schema import Recipe

BASE = "base"
"""Folder of a run directory with the weights that low-rank changes are added to."""


class Base(TypedDict):
    """What a checkpoint of low-rank changes says of the network below them.

    Attributes:
        source: the checkpoint it came from; empty for a network that was initialised in the run.
        weights: `ema` or `model`, those that were taken.
        digest: of its tensors, see `digest_of`.
        trained: names of parameters of the network that were trained whole.
    """

    source: str
    weights: str
    digest: str
    trained: list[str]


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever file they are in."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_in(folder: Path, weights: str) -> dict[str, Tensor]:
    """The averaged (`ema`) or raw (`model`) weights of a checkpoint directory.

    Raises:
        CheckpointError: it has none.
    """
    file = _file_of(folder, weights)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from None
    if weights == "ema":
        return tensors
    return {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}


def _file_of(folder: Path, weights: str) -> Path:
    file = folder / (MODEL if weights == "ema" else TRAINING)
    if not file.is_file():
        way = "; it was exported for use, take --weights ema" if weights == "model" else ""
        raise CheckpointError(f"{folder} has no {file.name}{way}")
    return file


def has_base(home: Path) -> bool:
    """Whether the weights below the low-rank changes of checkpoint `home` are in its run directory."""
    return any((run / BASE / MODEL).is_file() for run in (home.parent, home))


def believed(stored: StoredTensors, recipe: Recipe, base: Base | None, home: Path) -> dict[str, Tensor] | None:
    """Headers of the tensors that bound the sizes of a network: those stored, and those below low-rank changes.

    None for changes of a pretrained network whose weights its library loads: the sizes are those of that file.

    Raises:
        CheckpointError: the weights below are not there.
    """
    if recipe.lora is None:
        return stored.headers()
    file = _base_file(required_base(base, home), home)
    if file is None:
        return None if recipe.is_pretrained else stored.headers()
    return stored.headers() | {f"below.{name}": value for name, value in StoredTensors.of(file).headers().items()}


def required_base(base: Base | None, home: Path) -> Base:
    """The description of the weights below low-rank changes, as it has to be.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if base is None:
        raise CheckpointError(f"{home} holds low-rank changes, but does not name the weights they belong to")
    texts = isinstance(base, dict) and all(isinstance(base.get(key), str) for key in ("source", "weights", "digest"))
    names = base.get("trained") if texts else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{home}: what it says of the weights below its changes is damaged")
    return base


def _base_file(base: Base, home: Path) -> Path | None:
    """The file of the weights below low-rank changes: in the run directory of checkpoint `home`, else at their source.

    None for the initial weights of a network, of which there is no file.

    Raises:
        CheckpointError: it is not there.
    """
    for run in (home.parent, home):
        if (run / BASE / MODEL).is_file():
            return run / BASE / MODEL
    if not base["source"]:
        return None
    try:
        return _file_of(locate(base["source"]), base["weights"])
    except CheckpointError as error:
        raise CheckpointError(
            f"{home} holds low-rank changes of {base['source']}, which is not there: {error}"
        ) from None


def base_tensors(base: Base, home: Path, built: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below low-rank changes: those in the run directory of checkpoint `home`, else those of the source.

    Args:
        base: what the checkpoint says of them.
        home: the checkpoint.
        built: of the network as it is built, which a pretrained network of another library is filled with.

    Raises:
        CheckpointError: they are not there, or have been changed.
    """
    file = _base_file(base, home)
    if file is None:
        return _verified(dict(built), base, home)
    weights = "ema" if file.name == MODEL else "model"
    return _verified(weights_in(file.parent, weights), base, file.parent)


def _verified(tensors: dict[str, Tensor], base: Base, place: Path) -> dict[str, Tensor]:
    digest = digest_of(tensors)
    if digest != base["digest"]:
        raise CheckpointError(
            f"{place}: the weights below its low-rank changes are others (digest {digest[:12]}) than those they were "
            f"trained on ({base['digest'][:12]}); these were in the folder {BASE} of the run"
        )
    return tensors


def fill_network(
    network: nn.Module,
    lora: LoraSettings | None,
    stored: StoredTensors,
    base: Base | None,
    home: Path,
    dtype: torch.dtype | None = None,
    where: Where = on_cpu,
) -> None:
    """Load the weights of checkpoint `home` into a network as its recipe builds it; low-rank changes are added to them.

    The network was built `without_weights` if there are no changes; `dtype` and `where` are those of `fill_mapped`,
    with low-rank changes all is float32 and on the CPU.

    Raises:
        CheckpointError: weights that do not fit the recipe or are not finite, or the base of the changes is not there.
    """
    try:
        if lora is None:
            fill_mapped(network, stored, dtype, where)
        else:
            changes = {name: value.float() for name, value in stored.items()}
            fill_merged(network, lora, changes, base_tensors(required_base(base, home), home, network.state_dict()))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{home}: weights do not fit the recipe: {reason}") from None
    values = ((name, stored[name] if value.is_meta else value) for name, value in network.named_parameters())
    unusable = [name for name, value in values if not is_finite(value)]
    if unusable:
        raise CheckpointError(f"{home}: weights {unusable[0]} hold NaN or infinity; use an earlier checkpoint")


def is_finite(value: Tensor) -> bool:
    """Whether no number is NaN or infinite; takes no memory."""
    return bool(value.sum(dtype=torch.float64).isfinite())


def fill_merged(
    network: nn.Module, lora: LoraSettings, stored: Mapping[str, Tensor], below: Mapping[str, Tensor]
) -> None:
    """Load the weights below low-rank changes into a network, then the changes, and add them to the weights.

    Args:
        network: as built, without changes.
        lora: the changes.
        stored: of a checkpoint: changes, and parameters that were trained whole.
        below: of the network below them.

    Raises:
        RuntimeError: they do not fit the network.
    """
    fill_base(network, stored, below)
    changed = add_lora(network, lora)
    network.load_state_dict({**network.state_dict(), **stored})
    changed.merge_and_unload()


def fill_base(network: nn.Module, stored: Mapping[str, Tensor], below: Mapping[str, Tensor]) -> None:
    """Load what the checkpoint of changes does not hold, all of it.

    Raises:
        RuntimeError: a tensor is missing or of another shape.
    """
    own = network.state_dict()
    taken = {name: value.to(own[name]) for name, value in below.items() if name in own and name not in stored}
    missing = sorted(own.keys() - taken.keys() - {name.replace(".base_layer.", ".") for name in stored})
    if missing:
        raise RuntimeError(f"missing {missing[0]}")
    network.load_state_dict(taken, strict=False)
