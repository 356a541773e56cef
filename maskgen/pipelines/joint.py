"""Rows of several streams from a checkpoint: text to image, image to text, maps, labels, parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import Checkpoint, CheckpointError
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.stream_bounds import stream_bound
from maskgen.objectives import MaskedTokens
from maskgen.pipelines.arguments import n_batches, seeds_of, slices
from maskgen.pipelines.base import Pipeline, SamplerLike
from maskgen.pipelines.classes import Classes
from maskgen.pipelines.edit import Edit, Holes
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.joint_given import Known, Pictures, RowReader
from maskgen.pipelines.joint_output import JointOutput, JointStep, output_of
from maskgen.pipelines.watch import Progress, ProgressBar, UnmaskingOrder, both, steps_of
from maskgen.processes import StreamDenoiser
from maskgen.samplers import MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.layout import StreamsInTurn
from maskgen.samplers.masked.loop import OnStep
from maskgen.schedules import Linear
from maskgen.tokenizers.joint.rows import RowTokenizer


class JointPipeline(Pipeline):
    """Samples rows of several streams: `pipeline(prompt="a dark plain narrow dress")`, `pipeline.describe(image)`."""

    def _check_kind(self, checkpoint: Checkpoint) -> None:
        if checkpoint.recipe.streams is None:
            raise CheckpointError(f"{checkpoint.path} generates one stream; use maskgen.load")

    @property
    def tokenizer(self) -> RowTokenizer:
        """The tokenizer of the rows."""
        assert isinstance(self.generator.tokenizer, RowTokenizer)
        return self.generator.tokenizer

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams in a row, in order."""
        return tuple(self.tokenizer.layout.index_of)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a label stream, in the order of their ids."""
        return self.checkpoint.classes if "label" in self.streams else ()

    @property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the classes of a map, in the order of their ids."""
        return self.checkpoint.map_classes

    def _contents(self) -> str:
        return f"rows of {', '.join(self.streams)}"

    def _check_guidance(self) -> None:
        objective = self.checkpoint.recipe.build_objective(self.tokenizer.layout)
        if not isinstance(objective, MaskedTokens) or not objective.streams.can_drop:
            raise UserError("guidance needs a checkpoint trained with objective.stream_dropout above 0; use 1")

    def __call__(
        self,
        num: int | None = None,
        *,
        prompt: Sequence[str] | str | None = None,
        image: Pictures | None = None,
        hole: Holes | None = None,
        label: Classes | None = None,
        map: Tensor | None = None,
        first: Sequence[str] | str = (),
        sampler: SamplerLike | None = None,
        guidance: float | Guidance | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 250,
        progress: Progress = False,
        on_step: OnStep | None = None,
        **arguments: Any,
    ) -> JointOutput:
        """Draw rows: whatever is not given is generated; each row depends on its own seed and what it is given alone.

        Args:
            num: how many; as many as are given, or 8 if nothing is.
            prompt, image, hole, label, map: see `Known`; several of one kind are used in turn.
            first: streams that are generated before the others, in this order; together by default.
            sampler: a preset (`maskgen samplers`) or a sampler; the pipeline's own by default.
            guidance: scale of guidance by the streams that are given as a whole, 1 is off.
            seed: of row 0, row i has `seed + i`; or a list with a seed for each row.
            batch_size, progress, on_step: see `ImagePipeline`.
            **arguments: of the sampler: `steps`, `temperature`, ...

        Raises:
            UserError: something given that the rows do not hold or that does not fit them.
        """
        generator = self._decoder(first, sampler, guidance, arguments)
        given = Known(prompt, image, hole, label, map)
        return self._draw(generator, given, (num, seed), batch_size, progress, on_step)

    def _draw(
        self,
        generator: Generator,
        given: Known,
        numbered: tuple[int | None, int | Sequence[int]],
        batch_size: int,
        progress: Progress,
        on_step: OnStep | None,
    ) -> JointOutput:
        """Rows in batches; `numbered` is how many, and their seeds."""
        known, edit = self._reader.known(given), self._reader.edit(given)
        seeds, num = seeds_of(numbered[1], numbered[0], 8 if known is None else len(known))
        tokens, orders = [], []
        with ProgressBar(progress, n_batches(num, batch_size)) as bar:
            for rows in slices(num, batch_size):
                some = None if known is None else known[torch.arange(rows.start, rows.stop) % len(known)]
                order = UnmaskingOrder(self.tokenizer.vocab_size, some)
                with self._computing():
                    tokens.append(generator.tokens(seeds[rows], known=some, on_step=both(order, bar, on_step)))
                orders.append(order.steps(tokens[-1]))
        return self._output(torch.cat(tokens), seeds, torch.cat(orders), edit)

    def stream(self, num: int | None = None, *, seed: int | Sequence[int] = 0, **arguments: Any) -> Iterator[JointStep]:
        """(step, tokens, output) after each step of a decoding of all rows in one batch; arguments of a call."""
        given = Known(**{one.name: arguments.pop(one.name) for one in fields(Known) if one.name in arguments})
        first, sampler = arguments.pop("first", ()), arguments.pop("sampler", None)
        generator = self._decoder(first, sampler, arguments.pop("guidance", None), arguments)
        known = self._reader.known(given)
        seeds, num = seeds_of(seed, num, 8 if known is None else len(known))
        some = None if known is None else known[torch.arange(num) % len(known)]
        for step, x_t in steps_of(lambda on_step: generator.tokens(seeds, known=some, on_step=on_step)):
            yield JointStep(step, x_t.cpu(), self._output(x_t, seeds))

    def describe(self, image: Pictures, *, seed: int = 0, **arguments: Any) -> list[str]:
        """A caption of each picture; other arguments as of a call.

        Raises:
            UserError: see a call; rows without captions.
        """
        self._reader.stream("caption")
        captions = self(image=image, seed=seed, **arguments).captions
        assert captions is not None
        return captions

    def segment(self, image: Pictures, *, seed: int = 0, **arguments: Any) -> Tensor:
        """The map of each picture, (N, H, W) int64; other arguments as of a call.

        Raises:
            UserError: see a call; rows without maps.
        """
        self._reader.stream("map")
        maps = self(image=image, seed=seed, **arguments).maps
        assert maps is not None
        return maps

    def classify(self, image: Pictures, **given: Any) -> Tensor:
        """Probabilities of the classes of each picture, (N, n) float32: the prediction of its masked label.

        Args:
            image: pictures.
            **given: other fields of `Known`.

        Raises:
            UserError: rows without labels.
        """
        self._reader.stream("label")
        rows, layout = self._reader.rows(Known(image=image, **given)), self.tokenizer.layout
        assert rows is not None
        x_t = rows.to(self.device)
        where = layout.over_row(torch.tensor([[name == "label" for name in self.streams]], device=self.device))
        with torch.no_grad(), self._computing():
            t = torch.ones(len(x_t), device=self.device)
            found = self._denoiser()(x_t, t, where=where.expand(x_t.shape))
        first = layout.offset("label")
        return found.log_probs()[:, first : first + layout.stream("label").vocab_size].exp().cpu()

    @torch.no_grad()
    def nll(
        self, target: str, *, given: Sequence[str] | None = None, strata: int = 32, seed: int = 0, **parts: Any
    ) -> Tensor:
        """Upper bound on -log p(target | given) of samples, (N,) float64 nats.

        Args:
            target: name of the stream that is scored.
            given: streams that it is conditioned on; all other parts by default. Those left out are masked.
            strata: evaluations of the network a row; more are more exact.
            seed: of the masks.
            **parts: fields of `Known`, the target's among them, whole.

        Raises:
            UserError: an unknown stream, or one that is neither given nor scored as a whole.
        """
        self._reader.stream(target)
        rows, layout = self._reader.rows(Known(**parts)), self.tokenizer.layout
        rows = layout.masked({}, 1) if rows is None else rows
        whole = {name for name in self.streams if not bool((rows[:, layout.place(name)] == layout.mask_id).any())}
        chosen = tuple(whole - {target}) if given is None else tuple(given)
        for name in (target, *chosen):
            if name not in whole:
                raise UserError(f"{name}: give it as a whole, to score it or to score {target} given it")
        model, rng, schedule = self._denoiser(), Rng.stream(seed), self.generator.schedule or Linear()
        with self._computing():
            bound = stream_bound(model, layout, rows.to(self.device), target, chosen, rng, strata, schedule)
        return bound.mean(1).cpu()

    def _decoder(
        self,
        first: Sequence[str] | str,
        sampler: SamplerLike | None,
        guidance: float | Guidance | None,
        arguments: Mapping[str, Any],
    ) -> Generator:
        """The generator with a sampler, guidance and the order of the streams."""
        generator = self.with_sampler(sampler, guidance, **arguments)
        names = (first,) if isinstance(first, str) else tuple(first)
        if not names:
            return generator
        assert isinstance(generator.sampler, MaskedSampler)
        for name in names:
            self._reader.stream(name)
        return replace(generator, sampler=replace(generator.sampler, layout=StreamsInTurn(names)))

    def _denoiser(self) -> StreamDenoiser:
        return StreamDenoiser(self.model, self.tokenizer.layout, has_stream_times=len(self.streams) > 1)

    @property
    def _reader(self) -> RowReader:
        return RowReader(self.tokenizer, self.checkpoint.image_shape, self.classes, self.device)

    def _output(
        self, tokens: Tensor, seeds: Sequence[int], order: Tensor | None = None, edit: Edit | None = None
    ) -> JointOutput:
        with torch.no_grad():
            output = output_of(self.tokenizer.decode(tokens), tokens, seeds, order, len(self.map_classes))
        if edit is None or output.pixels is None:
            return output
        return output.with_pixels(edit.paste(output.pixels))
