"""Validation and previews of a training run, with its averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from maskgen.core.pixels import to_float
from maskgen.data.base import ImageSource
from maskgen.data.image.captions import CaptionedRows
from maskgen.data.loader import in_order
from maskgen.pipelines.generator import Generator
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer

from .callbacks import preview_reconstructions, preview_rows, preview_samples, preview_texts
from .loop import validate
from .parts import Parts
from .sharding import is_sharded
from .signals import Signals
from .some_rows import SomeRows, spread


@dataclass(frozen=True)
class Validator:
    """Held-out scores and previews. A stop may interrupt both, unless other processes wait for this one."""

    recipe: Recipe
    accelerator: Accelerator
    signals: Signals

    def scores(self, parts: Parts, module: nn.Module) -> dict[str, float]:
        """Means over held-out rows; empty if a stop interrupted them."""
        accelerator, held_out = self.accelerator, parts.held_out
        world, n_rows = accelerator.num_processes, self.recipe.train.validation_rows
        if not n_rows or len(held_out) < world:  # every process needs a row, or the reduction would wait for it
            return {}
        n_rows = min(max(n_rows, world), len(held_out))
        if is_sharded(accelerator):  # all processes must make the same number of passes
            n_rows -= n_rows % world
        subset = SomeRows(held_out, spread(len(held_out), n_rows, accelerator.process_index, world))
        batch_size = 250 if isinstance(parts.source, ImageSource) else 32
        arguments = (module, parts.objective, in_order(subset, batch_size), parts.to_batch, accelerator)
        if world > 1:  # a process that stops alone would leave the others waiting
            return validate(*arguments)
        return self.signals.attempt(lambda: validate(*arguments)) or {}

    def preview(self, parts: Parts, path: Path, module: nn.Module) -> None:
        """Write samples or reconstructions to a file; `path` is without suffix. For the first process alone."""
        self.signals.attempt(lambda: self._draw(parts, path, module))

    def _draw(self, parts: Parts, path: Path, module: nn.Module) -> None:
        recipe, device = self.recipe, self.accelerator.device
        if recipe.task == "generator":
            assert parts.tokenizer is not None
            generator = Generator.of(replace(parts.system, network=module), device)
            if recipe.streams is not None:
                preview_rows(path, generator)
            elif recipe.kind == "text":
                preview_texts(path.with_suffix(".txt"), generator)
            else:
                captions = parts.captions
                shown = parts.held_out if len(parts.held_out) else parts.train
                if captions is not None and isinstance(shown, CaptionedRows):
                    captions = replace(captions, numbers=shown.numbers)
                preview_samples(path.with_suffix(".png"), generator, len(parts.classes), captions)
        elif isinstance(module, ImageTokenizer):
            rows = parts.held_out if len(parts.held_out) else parts.train
            images = rows.__getitems__(range(min(40, len(rows))))[0]
            preview_reconstructions(path.with_suffix(".png"), module, to_float(images.to(device)))
