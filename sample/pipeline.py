"""The pipeline: a checkpoint, ready to sample from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from maskgen.checkpoint import Checkpoint, CheckpointError, copy_for_use, load_model, read_checkpoint
from maskgen.devices import pick_device
from maskgen.errors import UserError
from maskgen.generate import Generator
from maskgen.predictions import NULL
from maskgen.samplers.masked import OnStep

from .pictures import to_pil


@dataclass(frozen=True)
class SampleOutput:
    """`images`, PIL; `labels`, a class each (`None` without classes); `tokens` (N, L); `pixels` (N, C, H, W) uint8."""

    images: list[Image.Image]
    labels: list[int] | None
    tokens: Tensor
    pixels: Tensor


class Pipeline:
    """Samples from a checkpoint: `maskgen.load("fashion-maskgit")(num=8, classes=["Sandal"]).images`."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        if checkpoint.recipe.task != "generator":
            raise CheckpointError(
                f"{checkpoint.path} is a {checkpoint.recipe.task}; only a generator can be sampled from"
            )
        network, tokenizer = load_model(checkpoint)
        assert tokenizer is not None
        self.checkpoint = checkpoint
        self.classes = checkpoint.classes
        self.model = cast(Any, network)
        self.generator = Generator(
            self.model,
            tokenizer,
            checkpoint.recipe.build_sampler(),
            checkpoint.recipe.build_guidance(),
            device,
        )
        self.to(device)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str = "auto") -> Pipeline:
        """See `maskgen.load`."""
        return cls(read_checkpoint(source), pick_device(device))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the checkpoint without training state; `from_pretrained` and `maskgen.load` read it."""
        copy_for_use(self.checkpoint, Path(directory).expanduser())

    def to(self, device: torch.device | str) -> Pipeline:
        """Move it; returns itself."""
        device = torch.device(device)
        self.model.to(device)
        self.generator = replace(self.generator, tokenizer=self.generator.tokenizer.to(device), device=device)
        return self

    def with_sampler(self, sampler: str | None = None, guidance: float | None = None, **arguments: Any) -> Generator:
        """The generator with another sampler preset, guidance scale or sampler arguments (`steps`, `temperature`, ...).

        Raises:
            UserError: unknown sampler or argument, or guidance that the checkpoint cannot do.
        """
        recipe, generator = self.checkpoint.recipe, self.generator
        if sampler is not None:
            arguments["type"] = sampler
        if arguments:
            generator = replace(generator, sampler=recipe.build_sampler(**arguments))
        if guidance is not None:
            if guidance < 0:
                raise UserError(f"guidance must be at least 0 (1 is off), got {guidance}")
            generator = replace(generator, guidance=replace(generator.guidance, scale=guidance))
        if generator.guidance.scale != 1 and self.classes and not self.model.has_null_label:
            raise UserError("guidance needs a checkpoint trained with a null label (model.has_null_label: true)")
        return generator

    def labels(self, classes: Sequence[str | int] | str | None, num: int) -> Tensor | None:
        """(num,) labels: the given classes in turn, `all` or None for every class in turn.

        Raises:
            UserError: unknown class; the message lists them.
        """
        if not self.classes:
            if classes:
                raise UserError("this checkpoint is unconditional: it has no classes to choose from")
            return None
        wanted = [classes] if isinstance(classes, str | int) else list(classes or ["all"])
        ids = [label for one in wanted for label in self._class_ids(one)]
        return torch.tensor([ids[index % len(ids)] for index in range(num)])

    def _class_ids(self, name: str | int) -> list[int]:
        text = str(name).strip().lower()
        if text == "all":
            return list(range(len(self.classes)))
        if text in ("none", "null") and self.model.has_null_label:
            return [NULL]
        if text.isdecimal() and int(text) < len(self.classes):
            return [int(text)]
        names = [known.lower() for known in self.classes]
        if text in names:
            return [names.index(text)]
        shown = ", ".join(f"{index} {known}" for index, known in enumerate(self.classes[:20]))
        more = f", ... {len(self.classes) - 1}" if len(self.classes) > 20 else ""
        raise UserError(f"unknown class {str(name)!r}; choose from all, {shown}{more}")

    def __call__(
        self,
        num: int = 8,
        classes: Sequence[str | int] | str | None = None,
        *,
        sampler: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int = 250,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> SampleOutput:
        """Draw `num` samples; sample i depends on `seed + i` and its class alone, not on the batch.

        Args:
            num: how many.
            classes: names or ids, taken in turn; None or `all` cycles over all.
            sampler: a preset (`maskgen samplers`), the checkpoint's own by default.
            guidance: scale of classifier-free guidance, 1 is off.
            seed: of sample 0.
            batch_size: samples computed together.
            on_step: called after each step with (steps done, steps in all, tokens (B, L)).
            **arguments: of the sampler: `steps`, `temperature`, `choice_temperature`, ...
        """
        generator = self.with_sampler(sampler, guidance, **arguments)
        labels = self.labels(classes, num)
        parts = list(self.draw(generator, num, labels, seed, batch_size, on_step))
        tokens, pixels = (torch.cat(column) for column in zip(*parts, strict=True))
        return SampleOutput(to_pil(pixels), None if labels is None else labels.tolist(), tokens, pixels)

    def draw(
        self,
        generator: Generator,
        num: int,
        labels: Tensor | None,
        seed: int = 0,
        batch_size: int = 250,
        on_step: OnStep | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, L) and images (B, C, H, W) uint8 of `num` samples, batch by batch.

        Raises:
            UserError: num or batch_size below 1.
        """
        if num < 1 or batch_size < 1:
            raise UserError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
        for start in range(0, num, batch_size):
            rows = slice(start, min(start + batch_size, num))
            seeds = range(seed + rows.start, seed + rows.stop)
            tokens = generator.tokens(seeds, None if labels is None else labels[rows], on_step=on_step)
            yield tokens.cpu(), generator.decode(tokens)


def load(source: str | Path, *, device: str = "auto") -> Pipeline:
    """See `maskgen.load`."""
    return Pipeline.from_pretrained(source, device=device)
