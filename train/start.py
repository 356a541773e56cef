"""Where a run begins: at nothing, or at a checkpoint that is whole and of the same recipe and data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError, newest_in, read_checkpoint
from maskgen.core.devices import from_first_rank
from maskgen.core.errors import UserError
from maskgen.core.files import read_json
from maskgen.recipes.budget import TrainSettings, images_before, plan
from maskgen.recipes.schema import Recipe

from .parts import Parts
from .state import newest_whole, set_aside

FRESH, REFUSED = -1, -2


def find_start(directory: Path, recipe: Recipe, resume: bool, accelerator: Accelerator) -> Checkpoint | None:
    """The checkpoint to resume from, None for a fresh start: the first process chooses, the others follow.

    Raises:
        UserError: there is none, none that is whole, or one of another recipe; one that was not asked for.
    """
    start, number = None, torch.tensor(REFUSED, device=accelerator.device)
    try:
        if accelerator.is_main_process:
            start = _choose(directory, recipe, resume)
            number.fill_(FRESH if start is None else int(start.path.name.split("-")[1]))
    finally:
        step = int(from_first_rank(number))
    if step == REFUSED:
        raise UserError("the first process could not start; it says why")
    if step == FRESH or start is not None:
        return start
    return read_checkpoint(directory / f"checkpoint-{step}")


def _choose(directory: Path, recipe: Recipe, resume: bool) -> Checkpoint | None:
    newest = newest_in(directory)
    if newest is not None and not resume:
        raise UserError(f"{directory} holds {newest.name}; continue it with --resume, or choose another --output")
    if newest is None and resume:
        raise UserError(f"nothing to resume: {directory} has no checkpoint; leave --resume out")
    checkpoint, faults = newest_whole(directory)
    if checkpoint is None:
        if faults:
            raise CheckpointError("\n".join([f"no checkpoint in {directory} is whole:", *faults.values()]))
        return None
    changed = _changed(recipe, checkpoint.recipe)
    if changed:
        raise UserError(
            f"{checkpoint.path} was trained with another {', '.join(changed)}; resume with the same, or start anew"
        )
    if faults:
        set_aside(faults)
        names = ", ".join(f".bad-{path.name}" for path in faults)
        said = f"going on from {checkpoint.path.name}, the newest that is whole; newer ones are set aside as {names}"
        print("\n".join([*faults.values(), said]), file=sys.stderr)
    return checkpoint


def _changed(recipe: Recipe, before: Recipe) -> list[str]:
    """What a resumed run cannot change: all but how it is trained, and of that the optimizer, whose state it has."""
    keys = [key for key in type(recipe).model_fields if key not in ("train", "summary", "sampler", "guidance")]
    changed = [key for key in keys if getattr(recipe, key) != getattr(before, key)]
    return changed + ["train.optimizer"] * (recipe.train.optimizer != before.train.optimizer)


def check_data(start: Checkpoint, parts: Parts) -> None:
    """See that a run goes on with the rows it began with; a checkpoint that does not know them is believed.

    Raises:
        UserError: others, in which the order of the rows would be another.
    """
    now, before = parts.data, start.info.get("data")
    if before is None or before == now:
        return
    rows = f"{before['rows']:,} rows then, {now['rows']:,} now" if before["rows"] != now["rows"] else "as many rows"
    raise UserError(
        f"{start.path} was trained on other data ({rows}): resume with the same (files count with their size and time "
        "of change; cp -a and rsync -a keep it), or start anew in another --output"
    )


def images_seen(start: Checkpoint | None) -> int:
    """Rows a run has taken so far, whatever the batch sizes were."""
    if start is None:
        return 0
    phases = start.info.get("phases") or []
    return int(sum(phase["samples"] for phase in phases)) or images_before(start.step, start.recipe.train)


def require_shared(settings: TrainSettings, n_processes: int, step: int = 0) -> None:
    """See that processes can share the batches of every phase that is not over after a step.

    Raises:
        UserError: a phase's batch that they cannot cut into slices of one size.
    """
    for stretch in plan(settings):
        size = stretch.batch_size // stretch.accumulate
        if size % n_processes and stretch.last > step:
            place = f"phase {stretch.index + 1} (steps up to {stretch.last}): " if settings.phases else ""
            raise UserError(
                f"{place}train.batch_size / train.accumulate = {size} must be a multiple of the {n_processes} processes"
            )


def say_threads(start: Checkpoint) -> None:
    """Say so if another number of threads than before adds numbers up in another order."""
    before, now = start.info.get("threads"), torch.get_num_threads()
    if before is not None and before != now:
        print(
            f"{start.path.name} was made with {before} threads, now there are {now}: the run goes on in the same order "
            f"of data, but not in the same bits; OMP_NUM_THREADS={before} keeps them",
            file=sys.stderr,
        )


def spent_until(directory: Path, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run had spent at a checkpoint of this info: with the writing of it, if the run lived to say so."""
    try:
        later = read_json(directory / "cost.json")
        is_later = later["phases"] == info["phases"] and later["seconds"] >= info["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return info
    return later if is_later else info
