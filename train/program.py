"""`maskgen train`: a recipe and a directory in, checkpoints out."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from maskgen.budget import stretch_at
from maskgen.checkpoint import RECIPE, TOKENIZER, Checkpoint, copy_tokenizer, newest_in, read_checkpoint
from maskgen.devices import pick_device, pick_precision
from maskgen.errors import UserError
from maskgen.files import require_writable
from maskgen.recipe import Recipe, load_recipe
from maskgen.rng import fold

from .callbacks import drop_after
from .clock import Clock
from .ema import Ema
from .loop import Loop
from .optim import build_optimizer
from .parts import at_resolution, build, check_grids
from .run import Run
from .state import restore


def run(
    recipe_source: str,
    overrides: Sequence[str] = (),
    output: str | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Train; returns the last checkpoint.

    Raises:
        UserError: recipe, data, checkpoint or output that cannot be used.
    """
    recipe = load_recipe(recipe_source, overrides)
    directory = Path(output or f"runs/{Path(recipe_source).stem}").expanduser()
    start = _find_start(directory, recipe, resume)
    place = pick_device(device)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # others wait while one encodes the data set
    accelerator = Accelerator(
        cpu=place.type == "cpu",
        mixed_precision=pick_precision(recipe.train.precision, place),
        kwargs_handlers=[patience],
    )
    torch.manual_seed(fold(recipe.seed, "weights"))
    if accelerator.is_main_process:
        _prepare(directory, recipe, start)
    accelerator.wait_for_everyone()
    parts = build(recipe, accelerator, directory)
    check_grids(parts, recipe)
    if start is not None:  # the checkpoint was written in the phase of the step before it
        resolution = stretch_at(recipe.train, max(start.step - 1, 0)).resolution
        parts = at_resolution(parts, recipe, resolution, accelerator)
    ema = Ema(parts.module, recipe.train.ema)
    optimizer = build_optimizer(parts.module, recipe.train)
    model, prepared = accelerator.prepare(parts.module, optimizer)
    if start is not None:  # not before: accelerate reloads the state it finds, which AdamW refuses of Muon's matrices
        restore(start, parts.module, ema, optimizer)
    loop = Loop(
        model=model,
        objective=parts.objective,
        optimizer=prepared,
        ema=ema,
        data=iter(()),
        to_batch=parts.to_batch,
        accelerator=accelerator,
        settings=recipe.train,
        seed=recipe.seed,
        step=0 if start is None else start.step,
    )
    about = {"command": shlex.join(["maskgen", "train", recipe_source, *overrides]), "commit": _commit()}
    info = {} if start is None else start.info
    return Run(recipe, parts, loop, directory, Clock(info), about).go()


def _find_start(directory: Path, recipe: Recipe, resume: bool) -> Checkpoint | None:
    """The checkpoint to resume from, or None for a fresh start in a directory that can be written."""
    newest = newest_in(directory) if directory.is_dir() else None
    if newest is not None and not resume:
        raise UserError(f"{directory} holds {newest.name}; continue it with --resume, or choose another --output")
    if newest is None and resume:
        raise UserError(f"nothing to resume: {directory} has no checkpoint; leave --resume out")
    require_writable(directory, str(directory))
    if newest is None:
        return None
    checkpoint = read_checkpoint(newest)
    changed = [key for key in type(recipe).model_fields if key not in ("train", "summary", "sampler", "guidance")]
    changed = [key for key in changed if getattr(recipe, key) != getattr(checkpoint.recipe, key)]
    if changed:
        raise UserError(f"{newest} was trained with another {', '.join(changed)}; resume with the same, or start anew")
    return checkpoint


def _prepare(directory: Path, recipe: Recipe, start: Checkpoint | None) -> None:
    """What lies in a run directory beside checkpoints: recipe, metrics so far, the run's own copy of its tokenizer."""
    drop_after(directory / "metrics.jsonl", 0 if start is None else start.step)
    if start is None:
        if (directory / RECIPE).is_file():  # a run that ended before its first checkpoint
            shutil.rmtree(directory / "tokenizer", ignore_errors=True)
            (directory / TOKENIZER).unlink(missing_ok=True)
        (directory / RECIPE).write_text(recipe.dump(), encoding="utf-8")
        copy_tokenizer(recipe, directory)  # what its name stands for may change while the run goes on
    elif recipe.is_text:  # only the checkpoint may have been brought here
        start.text_tokenizer().save(directory / TOKENIZER)


def _commit() -> str:
    """The commit of the source tree this runs from, "" for an installed package."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
