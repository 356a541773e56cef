"""Images from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError
from maskgen.core.errors import UserError
from maskgen.core.files import local_path
from maskgen.core.traits import traits_of
from maskgen.data.image.captions import CaptionSettings, CaptionTable, read_embeddings
from maskgen.data.image.pictures import to_pil
from maskgen.pipelines.arguments import n_batches, seeds_of, slices, texts_of
from maskgen.pipelines.base import Pipeline, SamplerLike
from maskgen.pipelines.classes import Classes, ClassNames
from maskgen.pipelines.edit import Edit, Holes, Picture
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.outputs import ImageBatch, ImageOutput, ImageStep, joined
from maskgen.pipelines.partial import decode_partial
from maskgen.pipelines.sketch import Sketch, require_attention
from maskgen.pipelines.watch import Progress, ProgressBar, UnmaskingOrder, both, steps_of
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.loop import OnStep
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.encoder import TextEncoder


@dataclass(frozen=True)
class Conditioning:
    """What samples are conditioned on beside their class: captions, used in turn, and a picture to be completed."""

    captions: CaptionTable | None = None
    edit: Edit | None = None


class ImagePipeline(Pipeline):
    """Samples images: `maskgen.load("fashion-maskgit")(num=8, classes=["Sandal"]).images`."""

    _encoder: TextEncoder | None = None

    def _check_kind(self, checkpoint: Checkpoint) -> None:
        if checkpoint.recipe.kind == "text":
            raise CheckpointError(f"{checkpoint.path} generates text, not images; use maskgen.load_text")
        if checkpoint.recipe.streams is not None:
            raise CheckpointError(f"{checkpoint.path} generates rows of several streams; use maskgen.load_joint")

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The image tokenizer."""
        assert isinstance(self.generator.tokenizer, ImageTokenizer)
        return self.generator.tokenizer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.checkpoint.classes

    @property
    def class_names(self) -> ClassNames:
        """The classes, found by name or id."""
        return ClassNames(self.classes, traits_of(self.model).has_null_label)

    def _contents(self) -> str:
        channels, height, width = self.checkpoint.image_shape
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"images {channels} x {height} x {width}{classes}"

    def with_sampler(
        self, sampler: SamplerLike | None = None, guidance: float | Guidance | None = None, **arguments: Any
    ) -> Generator:
        """As `Pipeline.with_sampler`.

        Raises:
            UserError: also a checkpoint whose predictions are not tokens.
        """
        objective = self.checkpoint.recipe.build_objective(self.generator.tokenizer.vocab_size)
        if not objective.makes_tokens:
            raise UserError(
                f"{self.checkpoint.path} predicts a target that cannot be turned into images (normalised patches, "
                "features, ...); train with objective.target=pixels"
            )
        return super().with_sampler(sampler, guidance, **arguments)

    def _check_guidance(self) -> None:
        recipe = self.checkpoint.recipe
        if not self.classes and recipe.captions is None:
            raise UserError("guidance needs a condition: this checkpoint is unconditional; use 1")
        if recipe.build_objective(self.generator.tokenizer.vocab_size).label_dropout == 0:
            raise UserError("guidance needs a checkpoint trained with objective.label_dropout above 0; use 1")
        if self.classes and not traits_of(self.model).has_null_label:
            raise UserError("guidance needs a checkpoint trained with a null label (model.has_null_label: true)")

    def labels(self, classes: Classes | None, num: int) -> Tensor | None:
        """(num,) int64 labels: the classes in turn, all of them for `all` or None; None without classes.

        Raises:
            UserError: unknown or ambiguous class, or classes for an unconditional checkpoint.
        """
        if not self.classes:
            if classes:
                raise UserError("this checkpoint is unconditional: it has no classes to choose from")
            return None
        ids = self.class_names.ids(classes)
        return torch.tensor([ids[index % len(ids)] for index in range(num)])

    def __call__(
        self,
        num: int | None = None,
        classes: Classes | None = None,
        *,
        prompts: Sequence[str] | str | None = None,
        picture: Picture | None = None,
        hole: Holes | None = None,
        strength: float = 1.0,
        sampler: SamplerLike | None = None,
        guidance: float | Guidance | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 250,
        progress: Progress = False,
        on_step: OnStep | None = None,
        **arguments: object,
    ) -> ImageOutput:
        """Draw samples; each depends on its own seed and its class or prompt alone, not on the batch.

        Args:
            num: how many; 8 by default, or one for each seed of a list.
            classes: names or ids, used in turn; None or `all` cycles over all; `id:N` and `name:TEXT` are unambiguous.
            prompts: captions, used in turn, or files of embedded ones (.npy, .safetensors); none is unconditional.
            picture, hole: an image to complete and the regions to generate, see `Edit.of`; the rest is unchanged.
            strength: share of the hole's tokens to generate; below 1 a variation of the picture.
            sampler: a preset (`maskgen samplers`) or a sampler; the pipeline's own by default.
            guidance: scale of classifier-free guidance, 1 is off.
            seed: of sample 0, sample i has `seed + i`; or a list with a seed for each sample.
            batch_size: samples computed together.
            progress: True shows a bar; a function is called with (steps done, steps in all).
            on_step: called after each step with (steps done, steps in all, tokens (B, L)).
            **arguments: of the sampler: `steps`, `temperature`, `choice_temperature`, ...
        """
        generator = self.with_sampler(sampler, guidance, **arguments)
        seeds, num = seeds_of(seed, num, 8)
        labels, names, given = self.labels(classes, num), *self._conditioning(prompts, picture, hole, strength)
        with ProgressBar(progress, n_batches(num, batch_size)) as bar:
            batches = list(self.draw(generator, num, labels, seeds, batch_size, both(bar, on_step), given))
        return joined(batches, seeds, labels, names)

    def from_sketch(
        self,
        sketch: Picture,
        num: int | None = None,
        classes: Classes | None = None,
        *,
        guidance: float | Guidance | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 250,
        progress: Progress = False,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> ImageOutput:
        """Draw samples with the structure of a sketch (MaskSketch, arXiv 2302.05496); other arguments as of a call.

        Args:
            sketch: a drawing, in the colours of the data; see `Edit.of`.
            **arguments: `edges=True` for a photograph; `steps`, `structure` (0 follows the class alone, 1 the sketch
                alone), `layers`, and others of `SketchSampler`.

        Raises:
            UserError: a sketch or argument that cannot be used, or a checkpoint other than a MaskGIT.
        """
        generator = self.with_sampler(None, guidance)
        given = Sketch.of(sketch, self.checkpoint.image_shape, **arguments)
        require_attention(generator)
        seeds, num = seeds_of(seed, num, 8)
        labels, batches = self.labels(classes, num), []
        with ProgressBar(progress, n_batches(num, batch_size)) as bar, self._computing():
            for rows in slices(num, batch_size):
                some = None if labels is None else labels[rows]
                tokens = given.tokens(generator, seeds[rows], some, both(bar, on_step))
                batches.append(ImageBatch(tokens.cpu(), generator.decode(tokens), None))
        return joined(batches, seeds, labels, [])

    def stream(
        self,
        num: int | None = None,
        classes: Classes | None = None,
        *,
        prompts: Sequence[str] | str | None = None,
        picture: Picture | None = None,
        hole: Holes | None = None,
        sampler: SamplerLike | None = None,
        guidance: float | Guidance | None = None,
        seed: int | Sequence[int] = 0,
        **arguments: object,
    ) -> Iterator[ImageStep]:
        """(step, tokens, images) after each step of a decoding of all samples in one batch; arguments of a call."""
        generator = self.with_sampler(sampler, guidance, **arguments)
        seeds, num = seeds_of(seed, num, 8)
        labels, (_, given) = self.labels(classes, num), self._conditioning(prompts, picture, hole)

        def decode(on_step: OnStep) -> Tensor:
            return next(iter(self.draw(generator, num, labels, seeds, num, on_step, given))).tokens

        return self._steps(decode, given.edit)

    def _steps(self, decode: Callable[[OnStep], Tensor], edit: Edit | None) -> Iterator[ImageStep]:
        """The steps of a decoding as images."""
        for step, x_t in steps_of(decode):
            images = decode_partial(self.tokenizer, x_t, is_field=self.generator.process is not None)
            yield ImageStep(step, x_t.cpu(), to_pil(images if edit is None else edit.paste(images)))

    def _conditioning(
        self, prompts: Sequence[str] | str | None, picture: Picture | None, hole: Holes | None, strength: float = 1.0
    ) -> tuple[list[str], Conditioning]:
        """The prompt of each caption, and what samples are conditioned on."""
        names, captions = self.embed(prompts)
        edit = None if picture is None else Edit.of(picture, hole, self.checkpoint.image_shape, strength)
        return names, Conditioning(captions, edit)

    def embed(self, prompts: Sequence[str] | str | None) -> tuple[list[str], CaptionTable | None]:
        """The prompt of each caption and the embedded captions; a file may hold several.

        Raises:
            UserError: a checkpoint without captions, an encoder that cannot be loaded, or embeddings of another shape.
        """
        given = texts_of("prompts", prompts)
        if not given:
            return [], None
        settings = self.checkpoint.recipe.captions
        if settings is None:
            raise UserError("this checkpoint takes no prompts: it was trained without captions")
        names, parts = [], []
        for prompt in given:
            part = self._embedded(prompt, settings)
            names += [prompt] * len(part)
            parts.append(part)
        return names, CaptionTable(np.concatenate(parts))

    def _embedded(self, prompt: str, settings: CaptionSettings) -> NDArray[np.generic]:
        """(N, S, C) of one prompt, or of the captions in a file."""
        if prompt.endswith((".npy", ".safetensors")):
            captions = read_embeddings(local_path(prompt))
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
        seed: int | Sequence[int] = 0,
        batch_size: int = 250,
        on_step: OnStep | None = None,
        given: Conditioning = Conditioning(),
    ) -> Iterator[ImageBatch]:
        """Tokens and images of `num` samples, batch by batch.

        Raises:
            UserError: num or batch_size below 1.
        """
        seeds, _ = seeds_of(seed, num, num)
        tokenizer, is_masked = self.tokenizer, generator.process is None
        for rows in slices(num, batch_size):
            index = torch.arange(rows.start, rows.stop)
            captions = None if given.captions is None else given.captions.rows(index % len(given.captions))
            known = None if given.edit is None else given.edit.known(tokenizer, seeds[rows])
            order = UnmaskingOrder(tokenizer.vocab_size, known) if is_masked else None
            some = None if labels is None else labels[rows]
            with self._computing():
                tokens = generator.tokens(seeds[rows], some, known, on_step=both(order, on_step), captions=captions)
            images = generator.decode(tokens)
            yield ImageBatch(
                tokens.cpu(),
                images if given.edit is None else given.edit.paste(images),
                None if order is None else order.steps(tokens),
            )
