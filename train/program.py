"""`maskgen train`: a recipe and a directory in, checkpoints out."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn

from maskgen import __version__
from maskgen.checkpoint import RECIPE, TOKENIZER, Checkpoint, copy_tokenizer, newest_in, read_checkpoint
from maskgen.data.images import ImageSource
from maskgen.data.loader import Rows, batches, in_order
from maskgen.devices import pick_device, pick_precision
from maskgen.errors import UserError
from maskgen.eval.features import to_float
from maskgen.files import require_writable
from maskgen.generate import Generator
from maskgen.recipe import Recipe, load_recipe
from maskgen.rng import fold
from maskgen.tokenizers import ImageTokenizer

from .callbacks import Log, describe, drop_after, preview_reconstructions, preview_samples, preview_texts
from .ema import Ema
from .loop import Loop, Means, Speed, check_finite, validate
from .optim import build_optimizer
from .parts import Parts, SomeRows, build
from .state import prune, restore, save


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
        data=_batches(parts.train, recipe, accelerator, 0 if start is None else start.step),
        to_batch=parts.to_batch,
        accelerator=accelerator,
        settings=recipe.train,
        seed=recipe.seed,
        step=0 if start is None else start.step,
    )
    about = {"command": shlex.join(["maskgen", "train", recipe_source, *overrides]), "commit": _commit()}
    return _train(recipe, parts, loop, directory, Spent.before(start), about)


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


def _batches(data: Rows, recipe: Recipe, accelerator: Accelerator, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches of this process, from the first of `step` on."""
    settings, world = recipe.train, accelerator.num_processes
    size = settings.batch_size // settings.accumulate
    if size % world:
        raise UserError(f"train.batch_size / train.accumulate = {size} must be a multiple of the {world} processes")
    start = step * settings.accumulate
    rank = accelerator.process_index
    return batches(
        data, batch_size=size, seed=recipe.seed, start=start, workers=settings.workers, rank=rank, world=world
    )


def _commit() -> str:
    """The commit of the source tree this runs from, "" for an installed package."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class Spent:
    """Wall-clock and processor seconds of a run; the latter compare runs that shared their machine with others."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def before(cls, start: Checkpoint | None) -> Spent:
        """Offsets from which `so_far` counts: what the run had spent when it stopped."""
        info: Mapping[str, Any] = {} if start is None else start.info
        seconds, cpu_seconds = float(info.get("seconds", 0)), float(info.get("cpu_seconds", 0))
        return cls(time.perf_counter() - seconds, time.process_time() - cpu_seconds)

    def so_far(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self.seconds, 1),
            "cpu_seconds": round(time.process_time() - self.cpu_seconds, 1),
        }


def _train(recipe: Recipe, parts: Parts, loop: Loop, directory: Path, spent: Spent, about: dict[str, str]) -> Path:
    """The loop with logs, previews and checkpoints around it."""
    settings, accelerator = recipe.train, loop.accelerator
    log = Log(
        directory, loop.step, settings.steps, is_main=accelerator.is_main_process, tensorboard=settings.tensorboard
    )
    n_parameters = sum(p.numel() for p in parts.module.parameters())
    kind = "rows of text" if recipe.is_text else "images"
    log.say(f"{recipe.task}: {n_parameters:,} parameters, {len(parts.train):,} training {kind}, {directory}")
    means, speed = Means(), Speed()

    def checkpoint(step: int) -> None:
        facts = about | _facts(accelerator) | parts.facts() | spent.so_far()
        with loop.ema.applied() as module:
            scores = _validate(module, parts, settings.validation_rows, accelerator)
            is_due = settings.preview_every and (step % settings.preview_every == 0 or step == settings.steps)
            if is_due and accelerator.is_main_process:
                _preview(directory / "samples" / f"step-{step:08d}", recipe, parts, module, accelerator.device)
        if scores:
            log.metrics(step, {**scores, **spent.so_far()}, "validation")
            log.say(f"step {step}: {describe(scores, parts.objective.baseline)}")
        if accelerator.is_main_process:
            save(directory, step, recipe, parts.module, loop.ema, loop.optimizer, {**facts, "validation": scores})
            prune(directory, settings.keep_checkpoints)
        accelerator.wait_for_everyone()

    def on_step(step: int, logs: Mapping[str, Tensor]) -> None:
        means.add(logs)
        speed.add(settings.batch_size)
        log.advance()
        is_due = step % settings.checkpoint_every == 0 or step == settings.steps
        if is_due or step % settings.log_every == 0:  # no checkpoint of weights that were not looked at
            values = {**means.take(accelerator), "samples/s": speed.take()}
            check_finite(values["loss"], step)
            log.metrics(step, values, "train")
        if is_due:
            checkpoint(step)
            speed.take()

    try:
        loop.run(on_step)
    finally:
        log.close()
    accelerator.end_training()
    return directory / f"checkpoint-{loop.step}"


def _facts(accelerator: Accelerator) -> dict[str, Any]:
    """What made a checkpoint."""
    return {
        "maskgen": __version__,
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
    }


def _validate(module: nn.Module, parts: Parts, n_rows: int, accelerator: Accelerator) -> dict[str, float]:
    world = accelerator.num_processes  # every process needs a row, or the means would wait for it
    if not n_rows or len(parts.held_out) < world:
        return {}
    # Each process takes every world-th row of the first n_rows, so that the means are over each row once.
    rows = range(accelerator.process_index, min(max(n_rows, world), len(parts.held_out)), world)
    subset = SomeRows(parts.held_out, rows)
    batch_size = 250 if isinstance(parts.source, ImageSource) else 32
    return validate(module, parts.objective, in_order(subset, batch_size), parts.to_batch, accelerator)


def _preview(path: Path, recipe: Recipe, parts: Parts, module: nn.Module, device: torch.device) -> None:
    """Pictures or texts; `path` is without ending."""
    if recipe.task == "generator":
        assert parts.tokenizer is not None
        length = 0 if isinstance(parts.source, ImageSource) else parts.source.length
        sampler, guidance = recipe.build_sampler(), recipe.build_guidance()
        generator = Generator(module, parts.tokenizer, sampler, guidance, device, length)
        if recipe.is_text:
            preview_texts(path.with_suffix(".txt"), generator)
        else:
            preview_samples(path.with_suffix(".png"), generator, len(parts.source.classes))
    elif isinstance(module, ImageTokenizer):
        images = parts.held_out.__getitems__(range(min(40, len(parts.held_out))))[0]
        preview_reconstructions(path.with_suffix(".png"), module, to_float(images.to(device)))
