"""`maskgen train`: a recipe and a directory in, checkpoints out."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn

from maskgen import __version__
from maskgen.checkpoint import RECIPE, Checkpoint, copy_tokenizer, load_tokenizer, newest_in, read_checkpoint
from maskgen.data.cache import token_data
from maskgen.data.images import ImageSource
from maskgen.data.loader import Rows, batches, flip, in_order
from maskgen.devices import pick_device, pick_precision
from maskgen.errors import UserError
from maskgen.eval.features import to_float
from maskgen.files import require_writable
from maskgen.generate import Generator
from maskgen.objectives import Objective
from maskgen.predictions import Batch, Condition
from maskgen.recipe import Recipe, load_recipe
from maskgen.rng import Rng, fold
from maskgen.tokenizers import ImageTokenizer

from .callbacks import Log, describe, drop_after, preview_reconstructions, preview_samples
from .ema import Ema
from .loop import Loop, Means, Speed, check_finite, validate
from .optim import build_optimizer
from .state import prune, restore, save

ToBatch = Callable[[Tensor, Tensor, Rng], Batch]


@dataclass(frozen=True)
class Parts:
    """What a recipe is built into."""

    source: ImageSource
    tokenizer: ImageTokenizer | None
    module: nn.Module
    objective: Objective
    train: Rows
    test: Rows
    to_batch: ToBatch


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
    if start is not None:
        restore(start, parts.module, ema, optimizer)
    model, prepared = accelerator.prepare(parts.module, optimizer)
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
    return _train(recipe, parts, loop, directory, 0.0 if start is None else float(start.info["seconds"]), about)


def build(recipe: Recipe, accelerator: Accelerator, directory: Path | None = None) -> Parts:
    """Data, networks and objective of a recipe, on the accelerator's device; the run's own tokenizer if it has one."""
    source = recipe.build_data()
    shape, n_classes, device = source.image_shape, len(source.classes), accelerator.device
    train: Rows = source.split("train")
    test: Rows = source.split("test")
    tokenizer = None
    if recipe.task == "tokenizer":
        module: nn.Module = recipe.build_tokenizer(shape)
        if not any(p.requires_grad for p in module.parameters()):
            raise UserError(f"tokenizer {recipe.tokenizer} has nothing to train; choose vq or fsq")
        objective = recipe.build_objective()
    elif recipe.task == "classifier":
        module, objective = recipe.build_model(n_classes, shape), recipe.build_objective()
    else:
        tokenizer = load_tokenizer(recipe, shape, directory).to(device)
        module = recipe.build_model(n_classes, shape, tokenizer)
        objective = recipe.build_objective(tokenizer.vocab_size)
        if not getattr(module, "has_null_label", True) and bool((source.split("train").labels < 0).any()):
            raise UserError("data: some images have no label, and the model has no null label (model.has_null_label)")
        with accelerator.local_main_process_first():
            train = token_data(source.split("train"), tokenizer, device=device, progress=accelerator.is_main_process)
            test = token_data(source.split("test"), tokenizer, device=device, progress=accelerator.is_main_process)
    to_batch = _to_batch(device, bool(n_classes), is_images=tokenizer is None, is_flipped=recipe.train.flip)
    return Parts(source, tokenizer, module.to(device), objective, train, test, to_batch)


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
        (directory / RECIPE).write_text(recipe.dump(), encoding="utf-8")
        copy_tokenizer(recipe, directory)  # what its name stands for may change while the run goes on


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


def _to_batch(device: torch.device, has_labels: bool, *, is_images: bool, is_flipped: bool) -> ToBatch:
    """From rows of a data set, images (B, C, H, W) uint8 or tokens (B, L), to a Batch on the device."""

    def convert(x_0: Tensor, labels: Tensor, rng: Rng) -> Batch:
        x_0 = to_float(x_0.to(device)) if is_images else x_0.to(device)
        if is_images and is_flipped:
            x_0 = flip(x_0, rng.fork("flip"))
        return Batch(x_0, Condition(labels.to(device)) if has_labels else None)

    return convert


def _commit() -> str:
    """The commit of the source tree this runs from, "" for an installed package."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _train(
    recipe: Recipe, parts: Parts, loop: Loop, directory: Path, seconds_before: float, about: dict[str, str]
) -> Path:
    """The loop with logs, previews and checkpoints around it."""
    settings, accelerator = recipe.train, loop.accelerator
    log = Log(
        directory, loop.step, settings.steps, is_main=accelerator.is_main_process, tensorboard=settings.tensorboard
    )
    n_parameters = sum(p.numel() for p in parts.module.parameters())
    log.say(f"{recipe.task}: {n_parameters:,} parameters, {len(parts.train):,} training images, {directory}")
    means, speed, started = Means(), Speed(), time.perf_counter()

    def checkpoint(step: int) -> None:
        facts = about | _facts(parts, seconds_before + time.perf_counter() - started, accelerator)
        with loop.ema.applied() as module:
            scores = _validate(module, parts, settings.validation_images, accelerator)
            is_due = settings.preview_every and (step % settings.preview_every == 0 or step == settings.steps)
            if is_due and accelerator.is_main_process:
                _preview(directory / "samples" / f"step-{step:08d}.png", recipe, parts, module, accelerator.device)
        if scores:
            log.metrics(step, scores, "validation")
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
            values = {**means.take(accelerator), "images/s": speed.take()}
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


def _facts(parts: Parts, seconds: float, accelerator: Accelerator) -> dict[str, Any]:
    """What a checkpoint remembers beside weights and recipe."""
    return {
        "maskgen": __version__,
        "torch": torch.__version__,
        "classes": list(parts.source.classes),
        "image_shape": list(parts.source.image_shape),
        "seconds": round(seconds, 1),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
    }


def _validate(module: nn.Module, parts: Parts, n_images: int, accelerator: Accelerator) -> dict[str, float]:
    if not n_images:
        return {}
    # Each process takes every world-th row of the first n_images, so that the means are over each row once.
    world = accelerator.num_processes  # every process needs a row, or the means would wait for it
    rows = range(accelerator.process_index, min(max(n_images, world), len(parts.test)), world)
    subset = _Rows(parts.test, rows)
    return validate(module, parts.objective, in_order(subset, 250), parts.to_batch, accelerator)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a data set."""

    data: Rows
    index: range

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.data.__getitems__([self.index[i] for i in indices])


def _preview(path: Path, recipe: Recipe, parts: Parts, module: nn.Module, device: torch.device) -> None:
    if recipe.task == "generator":
        assert parts.tokenizer is not None
        generator = Generator(module, parts.tokenizer, recipe.build_sampler(), recipe.build_guidance(), device)
        preview_samples(path, generator, len(parts.source.classes))
    elif isinstance(module, ImageTokenizer):
        images = parts.test.__getitems__(range(min(40, len(parts.test))))[0]
        preview_reconstructions(path, module, to_float(images.to(device)))
