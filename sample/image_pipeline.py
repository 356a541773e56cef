"""Images from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from maskgen.checkpoint import Checkpoint, load_model
from maskgen.errors import UserError
from maskgen.generate import Generator
from maskgen.predictions import NULL
from maskgen.samplers.masked import OnStep

from .pictures import to_pil
from .pipeline import Pipeline, slices


@dataclass(frozen=True)
class SampleOutput:
    """`images`, PIL; `labels`, a class each (`None` without classes); `tokens` (N, L); `pixels` (N, C, H, W) uint8."""

    images: list[Image.Image]
    labels: list[int] | None
    tokens: Tensor
    pixels: Tensor


class ImagePipeline(Pipeline):
    """Samples images: `maskgen.load("fashion-maskgit")(num=8, classes=["Sandal"]).images`."""

    def _make(self, checkpoint: Checkpoint, device: torch.device) -> Generator:
        network, tokenizer = load_model(checkpoint)
        assert tokenizer is not None
        self.classes = checkpoint.classes
        recipe = checkpoint.recipe
        sampler, guidance = recipe.build_sampler(), recipe.build_guidance()
        return Generator(network, tokenizer, sampler, guidance, device, process=recipe.field_process())

    def _check_guidance(self) -> None:
        if self.classes and not getattr(self.model, "has_null_label", True):
            raise UserError("guidance needs a checkpoint trained with a null label (model.has_null_label: true)")

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
        if text in ("none", "null") and getattr(self.model, "has_null_label", True):
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
        for rows in slices(num, batch_size):
            seeds = range(seed + rows.start, seed + rows.stop)
            tokens = generator.tokens(seeds, None if labels is None else labels[rows], on_step=on_step)
            yield tokens.cpu(), generator.decode(tokens)
