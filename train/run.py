"""A run: the loop, phase by phase, with logs, previews and checkpoints around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maskgen import __version__
from maskgen.budget import Stretch, plan, stretch_at
from maskgen.cost import Cost
from maskgen.data.captions import CaptionedRows
from maskgen.data.images import ImageSource
from maskgen.data.loader import CounterSampler, batches, in_order
from maskgen.errors import UserError
from maskgen.eval.features import to_float
from maskgen.files import write_json
from maskgen.generate import Generator
from maskgen.recipe import Recipe
from maskgen.tokenizers import ImageTokenizer

from .callbacks import Log, describe, preview_reconstructions, preview_samples, preview_texts
from .clock import Clock
from .cost import brief, cost_of_parts
from .loop import Loop, Means, check_finite, validate
from .parts import Parts, SomeRows, at_resolution
from .state import prune, save


@dataclass
class Run:
    """What is between a built network and its last checkpoint; `about` goes into every checkpoint's info."""

    recipe: Recipe
    parts: Parts
    loop: Loop
    directory: Path
    clock: Clock
    about: dict[str, str]
    means: Means = field(default_factory=Means)

    def go(self) -> Path:
        """Train to the end; the last checkpoint."""
        settings, accelerator = self.recipe.train, self.loop.accelerator
        is_main = accelerator.is_main_process
        self.log = Log(
            self.directory, self.loop.step, settings.steps, is_main=is_main, tensorboard=settings.tensorboard
        )
        n_parameters = sum(p.numel() for p in self.parts.module.parameters())
        kind = "rows of text" if self.recipe.is_text else "images"
        n_rows = f"{len(self.parts.train):,} training {kind}"
        self.log.say(f"{self.recipe.task}: {n_parameters:,} parameters, {n_rows}, {self.directory}")
        if is_main:
            self.cost = self._cost()
            self.log.say(brief(self.cost))
        try:
            for stretch in plan(settings):
                if self.loop.step < stretch.last:
                    self._enter(stretch)
                    self.loop.run(self._on_step, until=stretch.last)
        finally:
            self.log.close()
        accelerator.end_training()
        return self.directory / f"checkpoint-{self.loop.step}"

    def _cost(self) -> Cost:
        source, length = self.parts.source, 0
        if not isinstance(source, ImageSource):
            length = source.length
        captions = self.parts.captions
        caption_shape = None if captions is None else (captions.length, captions.width)
        return cost_of_parts(self.recipe, self.parts.tokenizer, len(source.classes), length, caption_shape)

    def _enter(self, stretch: Stretch) -> None:
        """Data of a phase, from the loop's step on; the network on its grid."""
        self.parts = at_resolution(self.parts, self.recipe, stretch.resolution, self.loop.accelerator)
        self.loop.data = self._batches(stretch)
        self.loop.to_batch = self.parts.to_batch
        self.clock.resume()

    def _batches(self, stretch: Stretch) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of this process, from the loop's step on."""
        world, size = self.loop.accelerator.num_processes, stretch.batch_size // stretch.accumulate
        if size % world:
            raise UserError(f"train.batch_size / train.accumulate = {size} must be a multiple of the {world} processes")
        order = CounterSampler(
            len(self.parts.train),
            size,
            self.recipe.seed,
            start=(self.loop.step - stretch.first) * stretch.accumulate,
            offset=stretch.images,
            rank=self.loop.accelerator.process_index,
            world=world,
        )
        return batches(self.parts.train, order, self.recipe.train.workers)

    def _on_step(self, step: int, logs: Mapping[str, Tensor]) -> None:
        settings, stretch = self.recipe.train, stretch_at(self.recipe.train, step - 1)
        self.means.add(logs)
        self.clock.step(stretch.index, stretch.batch_size)
        self.log.advance()
        is_due = step % settings.checkpoint_every == 0 or step == settings.steps
        if is_due or step % settings.log_every == 0:  # no checkpoint of weights that were not looked at
            values = {**self.means.take(self.loop.accelerator), "samples/s": self.clock.samples_per_second()}
            if settings.phases or not isinstance(settings.keep_ratio, float):
                values["keep_ratio"] = stretch.keep_ratio_at(step - 1)
            check_finite(values["loss"], step)
            self.log.metrics(step, values, "train")
        if is_due:
            self._checkpoint(step)
            self.clock.samples_per_second()
            self.clock.resume()

    def _checkpoint(self, step: int) -> None:
        """Look at the averaged weights, then write everything."""
        settings, accelerator = self.recipe.train, self.loop.accelerator
        with self.loop.ema.applied() as module:
            scores = self._validate(module)
            is_due = settings.preview_every and (step % settings.preview_every == 0 or step == settings.steps)
            if is_due and accelerator.is_main_process:
                self._preview(self.directory / "samples" / f"step-{step:08d}", module)
        spent = self.clock.so_far()
        if scores:
            self.log.metrics(step, {**scores, **spent}, "validation")
            self.log.say(f"step {step}: {describe(scores, self.parts.objective.baseline)}")
        if accelerator.is_main_process:
            info = self.about | _facts(accelerator) | self.parts.facts() | spent
            info |= {"phases": self.clock.phases(), "validation": scores}
            save(self.directory, step, self.recipe, self.parts.module, self.loop.ema, self.loop.optimizer, info)
            prune(self.directory, settings.keep_checkpoints)
            write_json(self.directory / "cost.json", {**self.cost.tree(), **spent, "phases": self.clock.phases()})
        accelerator.wait_for_everyone()

    def _validate(self, module: nn.Module) -> dict[str, float]:
        accelerator, held_out = self.loop.accelerator, self.parts.held_out
        world, n_rows = accelerator.num_processes, self.recipe.train.validation_rows
        if not n_rows or len(held_out) < world:  # every process needs a row, or the means would wait for it
            return {}
        # Each process takes every world-th row of the first n_rows, so that the means are over each row once.
        rows = range(accelerator.process_index, min(max(n_rows, world), len(held_out)), world)
        subset = SomeRows(held_out, rows)
        batch_size = 250 if isinstance(self.parts.source, ImageSource) else 32
        return validate(module, self.parts.objective, in_order(subset, batch_size), self.parts.to_batch, accelerator)

    def _preview(self, path: Path, module: nn.Module) -> None:
        """Pictures or texts; `path` is without ending."""
        recipe, parts, device = self.recipe, self.parts, self.loop.accelerator.device
        if recipe.task == "generator":
            assert parts.tokenizer is not None
            length = 0 if isinstance(parts.source, ImageSource) else parts.source.length
            sampler, guidance = recipe.build_sampler(), recipe.build_guidance()
            process = recipe.field_process()
            generator = Generator(module, parts.tokenizer, sampler, guidance, device, length, process)
            if recipe.is_text:
                preview_texts(path.with_suffix(".txt"), generator)
            else:
                captions = parts.captions
                if captions is not None and isinstance(parts.held_out, CaptionedRows):
                    captions = replace(captions, numbers=parts.held_out.numbers)
                preview_samples(path.with_suffix(".png"), generator, len(parts.source.classes), captions)
        elif isinstance(module, ImageTokenizer):
            images = parts.held_out.__getitems__(range(min(40, len(parts.held_out))))[0]
            preview_reconstructions(path.with_suffix(".png"), module, to_float(images.to(device)))


def _facts(accelerator: Accelerator) -> dict[str, Any]:
    """What made a checkpoint."""
    return {
        "maskgen": __version__,
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
    }
