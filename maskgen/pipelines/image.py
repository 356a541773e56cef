"""Images from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, load_model
from maskgen.core.errors import UserError, closest
from maskgen.core.predictions import NULL
from maskgen.data.image.captions import CaptionSettings, CaptionTable, read_embeddings
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.base import Pipeline, slices
from maskgen.pipelines.edit import Edit, Picture
from maskgen.pipelines.generator import Generator
from maskgen.samplers.masked.loop import OnStep
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.encoder import TextEncoder


@dataclass(frozen=True)
class SampleOutput:
    """`images`, PIL; `labels`, a class each (`None` without classes); `tokens` (N, L); `pixels` (N, C, H, W) uint8.

    `prompts`: what each was asked for, None where nothing was.
    """

    images: list[Image.Image]
    labels: list[int] | None
    tokens: Tensor
    pixels: Tensor
    prompts: list[str] | None = None


@dataclass(frozen=True)
class Given:
    """What samples are made from beside their class: captions, taken in turn, and a picture that is to be completed."""

    captions: CaptionTable | None = None
    edit: Edit | None = None


class ImagePipeline(Pipeline):
    """Samples images: `maskgen.load("fashion-maskgit")(num=8, classes=["Sandal"]).images`."""

    _encoder: TextEncoder | None = None

    def _make(self, checkpoint: Checkpoint, device: torch.device) -> Generator:
        network, tokenizer = load_model(checkpoint)
        assert tokenizer is not None
        self.classes = checkpoint.classes
        recipe = checkpoint.recipe
        sampler, guidance = recipe.build_sampler(), recipe.build_guidance()
        return Generator(network, tokenizer, sampler, guidance, device, process=recipe.field_process())

    def with_sampler(self, sampler: str | None = None, guidance: float | None = None, **arguments: Any) -> Generator:
        """As `Pipeline.with_sampler`.

        Raises:
            UserError: also a checkpoint whose predictions are no tokens.
        """
        objective = self.checkpoint.recipe.build_objective(self.generator.tokenizer.vocab_size)
        if not getattr(objective, "makes_tokens", True):
            raise UserError(
                f"{self.checkpoint.path} predicts normalised patches, from which no picture can be made; train with "
                "objective.normalise=false"
            )
        return super().with_sampler(sampler, guidance, **arguments)

    def _check_guidance(self) -> None:
        recipe = self.checkpoint.recipe
        if not self.classes and recipe.captions is None:
            raise UserError("guidance needs something to be guided by: this checkpoint is unconditional; use 1")
        if getattr(recipe.build_objective(self.generator.tokenizer.vocab_size), "label_dropout", 1) == 0:
            raise UserError("guidance needs a checkpoint trained with objective.label_dropout above 0; use 1")
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
        raise UserError(f"unknown class {str(name)!r}; {closest(text, names)}choose from all, {shown}{more}")

    def __call__(
        self,
        num: int = 8,
        classes: Sequence[str | int] | str | None = None,
        *,
        prompts: Sequence[str] | str | None = None,
        picture: Picture | None = None,
        hole: str | Path | Tensor = "center",
        sampler: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int = 250,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> SampleOutput:
        """Draw `num` samples; sample i depends on `seed + i` and its class or prompt alone, not on the batch.

        Args:
            num: how many.
            classes: names or ids, taken in turn; None or `all` cycles over all.
            prompts: captions, taken in turn, or files of embedded ones (.npy, .safetensors); none is unconditional.
            picture, hole: what is to be completed and where, see `Edit.of`; the rest of it stays as it is.
            sampler: a preset (`maskgen samplers`), the checkpoint's own by default.
            guidance: scale of classifier-free guidance, 1 is off.
            seed: of sample 0.
            batch_size: samples computed together.
            on_step: called after each step with (steps done, steps in all, tokens (B, L)).
            **arguments: of the sampler: `steps`, `temperature`, `choice_temperature`, ...
        """
        generator = self.with_sampler(sampler, guidance, **arguments)
        labels = self.labels(classes, num)
        asked, captions = self.embed(prompts)
        edit = None if picture is None else Edit.of(picture, hole, self.checkpoint.image_shape)
        parts = list(self.draw(generator, num, labels, seed, batch_size, on_step, Given(captions, edit)))
        tokens, pixels = (torch.cat(column) for column in zip(*parts, strict=True))
        each = [asked[index % len(asked)] for index in range(num)] if asked else None
        return SampleOutput(to_pil(pixels), None if labels is None else labels.tolist(), tokens, pixels, each)

    def embed(self, prompts: Sequence[str] | str | None) -> tuple[list[str], CaptionTable | None]:
        """A name for each prompt's captions, and these embedded; a file may hold several.

        Raises:
            UserError: a checkpoint without captions, an encoder that cannot be had, or embeddings of another shape.
        """
        wanted = [prompts] if isinstance(prompts, str) else list(prompts or ())
        if not wanted:
            return [], None
        settings = self.checkpoint.recipe.captions
        if settings is None:
            raise UserError("this checkpoint takes no prompts: it was trained without captions")
        names, parts = [], []
        for prompt in wanted:
            part = self._embedded(prompt, settings)
            names += [prompt] * len(part)
            parts.append(part)
        return names, CaptionTable(np.concatenate(parts))

    def _embedded(self, prompt: str, settings: CaptionSettings) -> np.ndarray[Any, Any]:
        """(N, S, C) of one prompt, or of the captions in a file."""
        if prompt.endswith((".npy", ".safetensors")):
            captions = read_embeddings(Path(prompt).expanduser())
        else:
            captions = self._text_encoder(settings).embed([prompt]).numpy()
        if captions.shape[1:] != self.checkpoint.caption_shape:
            raise UserError(
                f"{prompt!r} embeds as {captions.shape[1:]}, tokens and width; this checkpoint was trained on "
                f"{self.checkpoint.caption_shape}"
            )
        return captions.astype(np.float16)  # as in training

    def _text_encoder(self, settings: CaptionSettings) -> TextEncoder:
        """The encoder of the training captions, loaded when it is first needed."""
        if self._encoder is None:
            encoder, trained_with = (
                settings.build_encoder(self.generator.device),
                self.checkpoint.info.get("caption_encoder"),
            )
            if trained_with and encoder.fingerprint() != trained_with:
                raise UserError(
                    f"{settings.encoder} is not the encoder this checkpoint was trained with: it has changed"
                )
            self._encoder = encoder
        return self._encoder

    def draw(
        self,
        generator: Generator,
        num: int,
        labels: Tensor | None,
        seed: int = 0,
        batch_size: int = 250,
        on_step: OnStep | None = None,
        given: Given = Given(),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, L) and images (B, C, H, W) uint8 of `num` samples, batch by batch.

        Raises:
            UserError: num or batch_size below 1.
        """
        for rows in slices(num, batch_size):
            seeds = range(seed + rows.start, seed + rows.stop)
            captions, edit = given.captions, given.edit
            index = torch.arange(rows.start, rows.stop)
            tokens = generator.tokens(
                seeds,
                None if labels is None else labels[rows],
                None if edit is None else edit.known(cast(ImageTokenizer, generator.tokenizer), len(seeds)),
                on_step=on_step,
                captions=None if captions is None else captions.rows(index % len(captions)),
            )
            images = generator.decode(tokens)
            yield tokens.cpu(), images if edit is None else edit.paste(images)
