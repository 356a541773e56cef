"""`maskgen train`: trains a recipe in a run directory."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from maskgen.checkpoints.checkpoint import RECIPE, TOKENIZER, Checkpoint, copy_tokenizer
from maskgen.core.console import surviving_output
from maskgen.core.devices import pick_device, pick_precision
from maskgen.core.errors import OutOfMemory, UserError, is_out_of_memory
from maskgen.core.files import local_path, require_writable
from maskgen.core.lock import RunLock
from maskgen.core.rng import fold
from maskgen.nn.checkpointing import recompute
from maskgen.recipes.budget import stretch_at
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers.text.specials import CONFIG

from .callbacks import drop_after
from .clock import Clock
from .ema import Ema
from .failures import forget_failures, share_failure
from .finetuning import begin, go_on, known_of, source_of
from .loop import Loop
from .optim import build_optimizer
from .parts import Parts, at_resolution, build, check_grids
from .run import Run, RunContext
from .sharding import fsdp_plugin, gather_for, require_supported, wrap_blocks
from .signals import Signals, Stopped
from .start import Resume, check_data, find_start, images_seen, require_shared, spent_until, warn_of_threads
from .state import clean, restore
from .status import Status


def run(
    recipe_source: str | Path | Recipe,
    overrides: Sequence[str] | Mapping[str, object] = (),
    output: str | Path | None = None,
    resume: Resume = False,
    device: str = "auto",
    start: Mapping[str, object] | None = None,
) -> Path:
    """Train; returns the last checkpoint. SIGTERM, SIGINT and SIGHUP end the run after a step, with a checkpoint.

    Args:
        recipe_source: name of a shipped recipe, or a YAML file.
        overrides: ``key=value``, each.
        output: run directory, default ``runs/RECIPE``.
        resume: continue from the newest checkpoint of the run directory; `auto` starts where there is none.
        device: `auto`, `cpu` or `cuda`.
        start: keys of `start` in the recipe.

    Raises:
        UserError: recipe, data, checkpoint or output that cannot be used, or a training that cannot go on.
        Stopped: a signal ended the run. SIGUSR1 writes a checkpoint and ends nothing.
    """
    clock, overrides = Clock(), _with_start(overrides, start or {})
    recipe = load_recipe(recipe_source, overrides)
    name = "recipe" if isinstance(recipe_source, Recipe) else str(recipe_source)
    directory = local_path(output or f"runs/{Path(name).stem}")
    require_writable(directory, str(directory))
    accelerator = _accelerator(recipe, device)
    is_main = accelerator.is_main_process
    about = {"command": shlex.join(["maskgen", "train", name, *_shown(overrides)]), "commit": _commit()}
    with surviving_output(), Signals() as signals, RunLock(directory) if is_main else nullcontext():
        if is_main:
            forget_failures(directory)
        resumed = find_start(directory, recipe, resume, accelerator)
        require_shared(recipe.train, accelerator.num_processes, 0 if resumed is None else resumed.step)
        status = Status(directory, name, recipe.train.steps, is_main=is_main)
        with _recorded(status, accelerator):
            return _built(recipe, directory, resumed, accelerator, RunContext(signals, status, about, clock)).go()


def _accelerator(recipe: Recipe, device: str) -> Accelerator:
    """Device, precision and processes of a run."""
    place, plugin = pick_device(device), fsdp_plugin()
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # processes wait while one encodes the data set
    accelerator = Accelerator(
        cpu=place.type == "cpu",
        mixed_precision=pick_precision(recipe.train.precision, place),
        kwargs_handlers=[patience],
        fsdp_plugin=plugin,
    )
    require_supported(accelerator, recipe, plugin)
    if accelerator.device.type != place.type or (accelerator.device.index or 0) != (place.index or 0):
        raise UserError(
            f"device {place}: training would run on {accelerator.device}; set CUDA_VISIBLE_DEVICES={place.index or 0} "
            "and leave out --device"
        )
    return accelerator


def _with_start(
    overrides: Sequence[str] | Mapping[str, object], start: Mapping[str, object]
) -> Sequence[str] | Mapping[str, object]:
    """Overrides, and keys of `start` before them."""
    keys = {f"start.{key}": value for key, value in start.items()}
    return keys | dict(overrides) if isinstance(overrides, Mapping) else [*_shown(keys), *overrides]


def _shown(overrides: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Overrides as the command line writes them."""
    if isinstance(overrides, Mapping):
        return [f"{key}={value}" for key, value in overrides.items()]
    return list(overrides)


@contextmanager
def _recorded(status: Status, accelerator: Accelerator) -> Iterator[None]:
    """Record in the status how the run ends; of several processes, each raises the error of the one that failed."""
    try:
        yield
    except Stopped as stop:
        status.write("stopped", stop.step or None)
        raise
    except Exception as error:
        cause = error
        if is_out_of_memory(error):
            cause = OutOfMemory("memory was exhausted before the first step: choose a smaller model, data set or batch")
        elif accelerator.num_processes > 1:
            cause = share_failure(status.directory, accelerator.process_index, error)
        with suppress(OSError):  # of a full disk, which is the error itself
            status.write("failed", error=str(cause) or type(cause).__name__)
        if cause is error:
            raise
        raise cause from error
    status.write("finished", status.steps)


def _built(
    recipe: Recipe, directory: Path, start: Checkpoint | None, accelerator: Accelerator, context: RunContext
) -> Run:
    """Build a run, and restore the state of its checkpoint if there is one."""
    torch.manual_seed(fold(recipe.seed, "weights"))
    if accelerator.is_main_process:
        clean(directory)
        _prepare(directory, recipe, start)
    accelerator.wait_for_everyone()
    source = source_of(recipe) if start is None else None
    parts = build(recipe, accelerator, directory, known_of(recipe, source) if start is None else start.facts)
    check_grids(parts, recipe)
    if start is None:
        origin = begin(parts, recipe, source, directory, is_main=accelerator.is_main_process)
    else:
        origin = go_on(parts, recipe, start)
        # the checkpoint was written in the phase of the step before it
        resolution = stretch_at(recipe.train, max(start.step - 1, 0)).resolution
        parts = at_resolution(parts, recipe, resolution, accelerator)
        if accelerator.is_main_process:
            check_data(start, parts)
            warn_of_threads(start)
    _ = parts.objective  # its copies of the network are made of its first weights, before anything wraps it
    loop = _loop(recipe, parts, start, accelerator)
    info = {} if start is None else start.info
    context.clock.count_on(spent_until(directory, info))
    run = Run(recipe, parts, loop, directory, context, origin, images_seen(start))
    run.means.load(info.get("means", {}), accelerator)
    return run


def _loop(recipe: Recipe, parts: Parts, start: Checkpoint | None, accelerator: Accelerator) -> Loop:
    """The training loop at the step of a checkpoint, with its weights and optimizer state."""
    if recipe.train.gradient_checkpointing:
        recompute(parts.module)
    optimizer = build_optimizer(parts.module, recipe.train)
    wrap_blocks(accelerator, parts.module)
    model, prepared = accelerator.prepare(parts.module, optimizer)
    strategy = parts.objective.strategy
    if strategy is not None and strategy.requires is not None:  # calls the network itself, without its wrapper
        gather_for(parts.module, strategy.requires)
    ema = Ema(parts.module, recipe.train.ema)
    if start is not None:  # not before: accelerate reloads the state it finds, which AdamW refuses of Muon's matrices
        restore(start, parts.module, ema, optimizer, parts.objective.state)
    info = {} if start is None else start.info
    return Loop(
        model=model,
        objective=parts.objective,
        optimizer=prepared,
        ema=ema,
        data=iter(()),
        to_batch=parts.to_batch,
        accelerator=accelerator,
        settings=recipe.train,
        seed=recipe.seed,
        state=parts.objective.state,
        step=0 if start is None else start.step,
        skipped=info.get("skipped", 0),
        skipped_in_a_row=info.get("skipped_in_a_row", 0),
    )


def _prepare(directory: Path, recipe: Recipe, start: Checkpoint | None) -> None:
    """Prepare the run directory: recipe, metrics so far, the run's own copy of its tokenizer."""
    drop_after(directory / "metrics.jsonl", 0 if start is None else start.step)
    if start is None:
        if (directory / RECIPE).is_file():  # a run that ended before its first checkpoint
            shutil.rmtree(directory / "tokenizer", ignore_errors=True)
            for name in (TOKENIZER, CONFIG):
                (directory / name).unlink(missing_ok=True)
        (directory / RECIPE).write_text(recipe.dump(), encoding="utf-8")
        copy_tokenizer(recipe, directory)  # the tokenizer of that name may change while the run goes on
    elif recipe.has_text:  # the run directory may hold nothing but the checkpoint
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
