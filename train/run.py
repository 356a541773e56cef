"""A training run: the loop, phase by phase, with logging, validation and checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.checkpoints.checkpoint import load_system, newest_in, read_checkpoint
from maskgen.core.errors import DiskFull, Diverged, OutOfMemory, UserError, is_out_of_memory
from maskgen.core.files import NO_SPACE, obey_umask, write_json
from maskgen.core.version import __version__
from maskgen.data.base import DataError
from maskgen.data.loader import CounterSampler, Shuffled, batches
from maskgen.recipes.budget import Stretch, plan, stretch_at
from maskgen.recipes.cost import TRAINING, matmul_peak
from maskgen.recipes.schema import Recipe

from .callbacks import Log, describe
from .clock import Clock
from .cost_report import brief, cost_of_system
from .finetuning import Origin
from .loop import Loop, Means
from .parts import Parts, at_resolution
from .sharding import is_sharded
from .signals import Signals, Stopped
from .state import collect, prune, save
from .status import Status
from .validation import Validator


@dataclass(frozen=True)
class RunContext:
    """Signal handlers, status file, provenance and clock of a run."""

    signals: Signals
    status: Status
    about: Mapping[str, str]
    clock: Clock


@dataclass
class Run:
    """A training from built parts to the last checkpoint; `images` counts the rows used so far."""

    recipe: Recipe
    parts: Parts
    loop: Loop
    directory: Path
    context: RunContext
    origin: Origin = field(default_factory=lambda: Origin({}))
    images: int = 0
    means: Means = field(default_factory=Means)
    _readers: ExitStack = field(default_factory=ExitStack)

    def go(self) -> Path:
        """Train to the end; the last checkpoint.

        Raises:
            Stopped: a signal ended the run; everything is saved.
            Diverged, OutOfMemory, DiskFull: training cannot go on; the last checkpoint is whole.
        """
        settings, accelerator = self.recipe.train, self.loop.accelerator
        is_main = accelerator.is_main_process
        self.log = Log(self.directory, self.loop.step, settings, is_main=is_main)
        self.clock, self.peak = self.context.clock, 0.0
        try:
            if is_main:
                self._introduce()
            self.context.signals.is_deferred = True
            for stretch in plan(settings):
                if self.loop.step < stretch.last:
                    self._enter(stretch)
                    with self.clock.on("steps"):
                        self.loop.run(self._on_step, until=stretch.last)
        except DataError:
            self._stop_without_data()
            raise
        except Exception as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            self._readers.close()
            self.log.close()
        accelerator.wait_for_everyone()  # no process leaves while another still writes the gathered tensors
        accelerator.end_training()
        self._account(self.loop.step)
        self.log.say(self.clock.summary())
        self._conclude()
        return self.directory / f"checkpoint-{self.loop.step}"

    def _conclude(self) -> None:
        """Name the preview and the next command."""
        previews = sorted(self.directory.joinpath("samples").glob("step-*"))
        if previews:
            self.log.say(f"preview: {previews[-1]}")
        if self.recipe.task == "generator":
            self.log.say(f"next: maskgen sample {shlex.quote(str(self.directory))}")

    def _stop_without_data(self) -> None:
        """Save and stop if a signal came and the data ended or hung; without a signal the error is raised."""
        stop, step = self.context.signals.stop, self.loop.step
        if not stop or not self.loop.is_between or self.loop.accelerator.num_processes > 1:
            return
        self.loop.undo()
        path = self.directory / f"checkpoint-{step}"
        if step and not path.exists() and not self.loop.skipped_in_a_row:
            self._checkpoint(step, is_validated=False)
        self._end(stop, step)

    def _end(self, stop: int, step: int) -> NoReturn:
        self._account(step)
        self.log.say(f"stopped by signal {stop} after step {step}; --resume goes on from {self._last()}")
        self.log.say(self.clock.summary())
        self.loop.accelerator.end_training()
        raise Stopped(stop, step)

    def _introduce(self) -> None:
        self.cost = cost_of_system(self.parts.system)
        self.peak = matmul_peak(self.loop.accelerator.device)
        kind = "rows of text" if self.recipe.kind == "text" else "images"
        n_rows = f"{len(self.parts.train):,} training {kind}"
        self.log.say(f"{self.recipe.task}: {self.cost.n_parameters:,} parameters, {n_rows}, {self.directory}")
        for line in (*self.origin.notes, *self.parts.source.report(), brief(self.cost)):
            self.log.say(line)
        self.context.status.write("running", self.loop.step)

    def _explained(self, error: Exception) -> Exception:
        """An error that ends a run, with the way out in its message; the error itself if there is none to add."""
        if isinstance(error, Diverged):
            return Diverged(f"{error}, then --resume goes on from {self._last()}; {self._kept_rows()}")
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in NO_SPACE):
            return DiskFull(f"{error}: make room in {self.directory}, then --resume goes on from {self._last()}")
        if not is_out_of_memory(error):
            return error
        settings, stretch = self.recipe.train, stretch_at(self.recipe.train, self.loop.step)
        is_offered = self.recipe.task != "classifier" and not settings.gradient_checkpointing
        again = "set train.gradient_checkpointing=true; " if is_offered else ""
        return OutOfMemory(
            f"step {self.loop.step + 1} did not fit into memory: raise train.accumulate (now {stretch.accumulate}), or "
            f"lower train.batch_size (now {stretch.batch_size}) or train.keep_ratio (now "
            f"{stretch.keep_ratio_at(self.loop.step):g}); {again}on a GPU train.precision=bf16 (now "
            f"{settings.precision}). --resume goes on from {self._last()}"
        )

    def _kept_rows(self) -> str:
        """Keep the rows of the last step for inspection; a sentence that names the file."""
        file = self.directory / f"bad-batch-{self.loop.step}-rank{self.loop.accelerator.process_index}.safetensors"
        pairs = enumerate(self.loop.rows)
        rows = {f"{name}.{micro}": x for micro, pair in pairs for name, x in zip(("x_0", "labels"), pair, strict=True)}
        save_file({key: value.cpu().contiguous() for key, value in rows.items()}, file)
        obey_umask(file)
        return f"the last batch is in {file.name}"

    def _last(self) -> str:
        newest = newest_in(self.directory)
        return "the beginning" if newest is None else newest.name

    def _enter(self, stretch: Stretch) -> None:
        """Switch data and grid of the network to those of a phase, from the loop's step on."""
        self.parts = at_resolution(self.parts, self.recipe, stretch.resolution, self.loop.accelerator)
        self._readers.close()  # of the phase before
        self.loop.data = self._batches(stretch)
        self.loop.to_batch, self.loop.objective = self.parts.to_batch, self.parts.objective

    def _batches(self, stretch: Stretch) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of this process, from the loop's step on. A signal ends a wait for data workers."""
        world, size = self.loop.accelerator.num_processes, stretch.batch_size // stretch.accumulate
        order = CounterSampler(
            len(self.parts.train),
            size,
            self.recipe.seed,
            offset=self.images,  # not a function of the step: the batch size may have changed at a resume
            rank=self.loop.accelerator.process_index,
            world=world,
        )
        if isinstance(self.parts.train, Shuffled):
            order.permute = self.parts.train.permute
        signals = self.context.signals
        settings = self.recipe.train
        read = batches(self.parts.train, order, settings.workers, lambda: bool(signals.stop), settings.worker_timeout)
        rows = self._readers.enter_context(closing(read))
        return self.clock.timed("data", rows if world > 1 or not settings.workers else _interruptible(rows, signals))

    def _on_step(self, step: int, logs: Mapping[str, Tensor]) -> None:
        settings, stretch = self.recipe.train, stretch_at(self.recipe.train, step - 1)
        self.clock.step(stretch.index, stretch.batch_size)
        self.images += stretch.batch_size
        is_last = step == settings.steps
        is_due = step % settings.checkpoint_every == 0 or is_last
        with self.clock.on("logging"):
            self.means.add(logs)
            self.log.advance()
            stop, is_saving = self._requests()
            if step % settings.log_every == 0 or is_last:
                self._write_metrics(step, stretch)
        if self.loop.skipped_in_a_row and (is_due or stop or is_saving):
            self.log.say(f"step {step}: no checkpoint, as the last {self.loop.skipped_in_a_row} steps were skipped")
            if is_last:
                raise Diverged(f"the last {self.loop.skipped_in_a_row} steps had no finite loss: lower train.lr")
        elif is_due or stop or is_saving:
            self._checkpoint(step, is_validated=is_due)
            stop = stop or self._requests()[0]  # that came meanwhile; a request for a checkpoint is met
        if stop and not is_last:
            self._end(stop, step)

    def _requests(self) -> tuple[int, bool]:
        """The signal that ends the run (0 for none), and whether a checkpoint is requested; equal in all processes."""
        signals, accelerator = self.context.signals, self.loop.accelerator
        stop, is_saving, signals.is_saving = signals.stop, signals.is_saving, False
        if accelerator.num_processes > 1:
            requests = torch.tensor([[float(stop), float(is_saving)]], device=accelerator.device)
            stop, is_saving = (accelerator.gather(requests).amax(0).long().tolist()[i] for i in (0, 1))
        return int(stop), bool(is_saving)

    def _write_metrics(self, step: int, stretch: Stretch) -> None:
        speed, waited = self.clock.window()
        values = {**self.means.take(self.loop.accelerator), "samples/s": speed, "data_wait": waited}
        if self.peak:
            flops = 2 * TRAINING * self.cost.macs[stretch.resolution, stretch.keep_ratio_at(step - 1)].total
            values["mfu"] = flops * speed / (self.peak * self.loop.accelerator.num_processes)
        if self.recipe.train.phases or not isinstance(self.recipe.train.keep_ratio, float):
            values["keep_ratio"] = stretch.keep_ratio_at(step - 1)
        if self.loop.skipped:
            values["skipped"] = float(self.loop.skipped)
        self.log.metrics(step, values, "train")
        if self.loop.accelerator.is_main_process:
            self.context.status.write("running", step)

    def _checkpoint(self, step: int, *, is_validated: bool) -> None:
        """Validate the averaged weights if that is due, and write a checkpoint."""
        settings, accelerator, ema = self.recipe.train, self.loop.accelerator, self.loop.ema
        validator = Validator(self.recipe, accelerator, self.context.signals)
        scores: dict[str, float] = {}
        if is_validated:
            with self.clock.on("validation"), ema.applied() as module:
                scores = validator.scores(self.parts, module)
        if scores:
            with self.clock.on("logging"):
                self.log.metrics(step, {**scores, **self.clock.so_far()}, "validation")
                self.log.say(f"step {step}: {describe(scores, self.parts.objective.baseline)}")
        with self.clock.on("saving"):
            self._save(step, scores)
        self._account(step, scores)
        is_due = settings.preview_every and (step % settings.preview_every == 0 or step == settings.steps)
        if is_due and is_validated and accelerator.is_main_process:
            with self.clock.on("previews"), self._alone(step) as module:
                validator.preview(self.parts, self.directory / "samples" / f"step-{step:08d}", module)
            self._account(step)
        accelerator.wait_for_everyone()
        if scores and settings.keep_best is not None and settings.keep_best.metric not in scores:
            raise UserError(
                f"train.keep_best.metric: the validation has no {settings.keep_best.metric!r}; choose from "
                f"{', '.join(scores)}, then --resume goes on from checkpoint-{step}"
            )

    def _alone(self, step: int) -> AbstractContextManager[nn.Module]:
        """The network with averaged weights, for one process: from the checkpoint if parameters are sharded."""
        if not is_sharded(self.loop.accelerator):
            return self.loop.ema.applied()
        checkpoint = read_checkpoint(self.directory / f"checkpoint-{step}")
        loaded = load_system(checkpoint).network
        return nullcontext(loaded.to(self.loop.accelerator.device))

    def _save(self, step: int, scores: dict[str, float]) -> None:
        """Write a checkpoint; all processes contribute their shards, the first one writes."""
        loop, accelerator = self.loop, self.loop.accelerator
        is_main = accelerator.is_main_process
        means = self.means.state(accelerator)
        has_base = "base" in self.origin.info
        tensors = collect(self.parts.module, loop.ema, loop.optimizer, loop.state, is_kept=is_main, has_base=has_base)
        if not is_main:
            return
        info = {**self.context.about, **self.origin.info} | _facts(accelerator) | self.parts.facts() | self.clock.tree()
        info |= {"validation": scores, "means": means}
        info |= {"skipped": loop.skipped, "skipped_in_a_row": loop.skipped_in_a_row}
        path = save(self.directory, step, self.recipe, tensors, info)
        prune(self.directory, self.recipe.train, path)

    def _account(self, step: int, scores: dict[str, float] | None = None) -> None:
        """Write the cost of the run so far to cost.json and the status."""
        if not self.loop.accelerator.is_main_process:
            return
        with self.clock.on("saving"):
            write_json(self.directory / "cost.json", {**self.cost.tree(), **self.clock.tree()})
            self.context.status.write("running", step, scores, shares=self.clock.shares())


def _interruptible(rows: Iterator[tuple[Tensor, Tensor]], signals: Signals) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows; a signal ends a wait for them.

    Raises:
        DataError: a signal came while a worker was waited for.
    """
    while (item := signals.attempt(lambda: next(rows))) is not None:
        yield item
    raise DataError("stopped while waiting for a data worker")


def _facts(accelerator: Accelerator) -> dict[str, object]:
    """The environment of a checkpoint."""
    return {
        "maskgen": __version__,
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }
