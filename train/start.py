"""The start of a run: from scratch, or from a complete checkpoint of the same recipe and data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError, newest_in, read_checkpoint
from maskgen.core.devices import from_first_rank
from maskgen.core.errors import UserError
from maskgen.core.files import read_json
from maskgen.data.content import CONTENT
from maskgen.recipes.budget import TrainSettings, images_before, plan
from maskgen.recipes.schema import Recipe

from .parts import Parts
from .state import newest_whole, set_aside

FRESH, REFUSED = -1, -2
Resume = bool | Literal["auto"]
"""Whether a run continues from its newest checkpoint; `auto` does if there is one."""


def find_start(directory: Path, recipe: Recipe, resume: Resume, accelerator: Accelerator) -> Checkpoint | None:
    """The checkpoint to resume from, None for a fresh start: the first process chooses, the others follow.

    Raises:
        UserError: no checkpoint, no complete one, or one of another recipe; a checkpoint without `resume`.
    """
    start, number = None, torch.tensor(REFUSED, device=accelerator.device)
    try:
        if accelerator.is_main_process:
            start = _choose(directory, recipe, resume)
            number.fill_(FRESH if start is None else int(start.path.name.split("-")[1]))
    finally:
        step = int(from_first_rank(number))
    if step == REFUSED:
        raise UserError("the first process could not start; see its message")
    if step == FRESH or start is not None:
        return start
    return read_checkpoint(directory / f"checkpoint-{step}")


def _choose(directory: Path, recipe: Recipe, resume: Resume) -> Checkpoint | None:
    newest = newest_in(directory)
    if newest is not None and not resume:
        raise UserError(f"{directory} holds {newest.name}; continue it with --resume, or choose another --output")
    if newest is None and resume is True:
        raise UserError(
            f"nothing to resume: {directory} has no checkpoint; leave --resume out, or use --resume auto, which starts "
            "where there is none"
        )
    checkpoint, faults = newest_whole(directory)
    if checkpoint is None:
        if faults:
            raise CheckpointError("\n".join([f"no checkpoint in {directory} is whole:", *faults.values()]))
        return None
    _require_same(checkpoint, recipe)
    if faults:
        set_aside(faults)
        names = ", ".join(f".bad-{path.name}" for path in faults)
        note = (
            f"resuming from {checkpoint.path.name}, the newest complete checkpoint; newer ones are renamed to {names}"
        )
        print("\n".join([*faults.values(), note]), file=sys.stderr)
    return checkpoint


def _require_same(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Compare the recipe of a resumed run with that of its checkpoint; changes that are allowed are printed.

    Raises:
        UserError: something changed that a resumed run cannot change.
    """
    before, after = (_flat(one.model_dump(mode="json")) for one in (checkpoint.recipe, recipe))
    changes = {
        key: f"{key} {_value(before.get(key))} -> {_value(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }
    kept = [key for key in changes if not _may_change(key, recipe)]
    refused = [changes[key] for key in kept]
    if refused:
        parts = ", ".join(dict.fromkeys(map(_part_of, kept)))
        raise UserError(
            f"{checkpoint.path} was trained with another {parts} ({'; '.join(refused)}); resume with the same, or "
            "start a new run in another --output"
        )
    allowed = [text for key, text in changes.items() if not key.startswith("summary")]
    if allowed:
        print(f"resuming with changes: {'; '.join(allowed)}", file=sys.stderr)


def _flat(tree: object, path: str = "") -> dict[str, object]:
    """The leaves of a recipe by dotted key; a part that is only a name is its `type`."""
    if isinstance(tree, Mapping):
        parts = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
        return {key: value for part in parts for key, value in part.items()}
    name = f"{path}.type" if path in ("data", "tokenizer", "process", "model", "objective", "sampler") else path
    return {} if tree is None else {name: tree}


def _may_change(key: str, recipe: Recipe) -> bool:
    """Whether a resumed run may change a key: how it trains and samples, but not the optimizer, whose state is kept.

    Where the data lie may change: rows and fingerprint identify them.
    """
    part, _, rest = key.partition(".")
    if part == "data":
        return rest in recipe.data_entry.locations
    return part in ("train", "summary", "sampler", "guidance") and key != "train.optimizer"


def _part_of(key: str) -> str:
    return key if key.startswith("train.") else key.split(".")[0]


def _value(value: object) -> str:
    return "default" if value is None else f"{value}"


def check_data(start: Checkpoint, parts: Parts) -> None:
    """Check that a run continues with the rows it began with; a checkpoint without a record of them is accepted.

    Raises:
        UserError: other rows, whose order would differ.
    """
    now, before = parts.data, start.info.get("data")
    if before is None or before == now:
        return
    rows = f"{before['rows']:,} rows then, {now['rows']:,} now" if before["rows"] != now["rows"] else "as many rows"
    is_of_times = now["fingerprint"].startswith(CONTENT) and not before["fingerprint"].startswith(CONTENT)
    if is_of_times and before["rows"] == now["rows"]:
        print(
            f"{start.path.name} is of an earlier version that identified files by their times; of its data only the "
            "number of rows was compared",
            file=sys.stderr,
        )
        return
    raise UserError(
        f"{start.path} was trained on other data ({rows}): resume with the same (names, sizes and contents count, not "
        "where the files lie or when they changed), or start a new run in another --output"
    )


def images_seen(start: Checkpoint | None) -> int:
    """Rows a run has used so far, whatever the batch sizes were."""
    if start is None:
        return 0
    phases = start.info.get("phases") or []
    return int(sum(phase["samples"] for phase in phases)) or images_before(start.step, start.recipe.train)


def require_shared(settings: TrainSettings, n_processes: int, step: int = 0) -> None:
    """Check that the processes can share the batches of every phase that is not over after a step.

    Raises:
        UserError: a batch that cannot be divided evenly.
    """
    for stretch in plan(settings):
        size = stretch.batch_size // stretch.accumulate
        if size % n_processes and stretch.last > step:
            place = f"phase {stretch.index + 1} (steps up to {stretch.last}): " if settings.phases else ""
            raise UserError(
                f"{place}train.batch_size / train.accumulate = {size} must be a multiple of the {n_processes} processes"
            )


def warn_of_threads(start: Checkpoint) -> None:
    """Warn if the number of threads has changed: sums are then rounded in another order."""
    before, now = start.info.get("threads"), torch.get_num_threads()
    if before is not None and before != now:
        print(
            f"{start.path.name} was trained with {before} threads, now there are {now}: the order of the data is the "
            f"same, rounding is not; OMP_NUM_THREADS={before} keeps the run exact to the bit",
            file=sys.stderr,
        )


def spent_until(directory: Path, info: Mapping[str, object]) -> Mapping[str, object]:
    """The cost of a run up to a checkpoint of this info, including writing it where cost.json has that."""
    try:
        later = read_json(directory / "cost.json")
        is_later = later["phases"] == info["phases"] and later["seconds"] >= info["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return info
    return later if is_later else info
