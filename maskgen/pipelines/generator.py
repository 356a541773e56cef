"""From seeds to tokens, images and texts, for previews, evaluation and the sampling programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.pixels import to_uint8
from maskgen.core.predictions import NULL, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.traits import traits_of
from maskgen.processes import Gaussian, StreamDenoiser, is_mask, put_masks
from maskgen.processes.preconditioned import Preconditioned
from maskgen.recipes.build import AnyTokenizer, System, text_layout
from maskgen.samplers import FieldSampler, MaskedSampler, with_exponents
from maskgen.samplers.guidance import Guidance, training_time
from maskgen.samplers.masked.ending import end_of_text
from maskgen.samplers.masked.layout import Blocks, Groups
from maskgen.samplers.masked.loop import OnStep
from maskgen.samplers.masked.unmasking import Scheduled
from maskgen.schedules import Schedule
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.joint.rows import RowTokenizer
from maskgen.tokenizers.text.specials import Specials
from maskgen.tokenizers.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Generator:
    """A network with everything that sampling from it needs.

    The traits of the network decide how it is decoded: a block-diffusion network (`block_length`) in its blocks, with
    the keys and values of finished blocks cached; one with a plan of `groups` likewise; one with learned rates
    (`has_exponents`) with these; one that `sees_known` with the known tokens as a condition.

    Attributes:
        denoiser: a `Denoiser`, or the network of a Gaussian process.
        tokenizer: of images or text.
        sampler, guidance: settings of the decoding.
        device: of the network.
        length: tokens of a text; images have the grid of their tokenizer.
        process: the Gaussian process, None for masked tokens.
        schedule: masking schedule of training, which a time-conditioned network is given the time of.
    """

    denoiser: Any
    tokenizer: AnyTokenizer
    sampler: MaskedSampler | FieldSampler
    guidance: Guidance
    device: torch.device
    length: int = 0
    process: Gaussian | None = None
    schedule: Schedule | None = None

    @classmethod
    def of(cls, system: System, device: torch.device) -> Generator:
        """The generator of a system, with its recipe's sampler and guidance; its network is on `device`."""
        assert system.tokenizer is not None
        return cls(
            system.network, system.tokenizer, system.sampler, system.guidance, device, system.facts.length,
            system.field_process, system.masking_schedule,
        )  # fmt: skip

    @torch.no_grad()
    def tokens(
        self,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
        captions: Tensor | None = None,
    ) -> Tensor:
        """(B, L) int64, or (B, L, D) float, one row per seed.

        Args:
            seeds: of the rows; a row depends on its own only.
            labels: (B,) int64, None for a network without classes.
            known: (B, L) int64 with known tokens and -1 at tokens to generate; (B, L, D) float with NaN there.
            on_step: called after each step of the sampler.
            captions: (B, S, C), embedded.

        Raises:
            UserError: known text after a gap, for a network that generates from left to right.
        """
        known = None if known is None else known.to(self.device)
        visible = known if traits_of(self.denoiser).sees_known else None
        cond = self._condition(len(seeds), labels, captions, visible)
        if self.process is not None:
            return self._field(self.process, Rng.per_sample(seeds), cond, known, on_step)
        mask_id, grid = self.tokenizer.vocab_size, self._grid()
        x_1 = self._masked(len(seeds), torch.Size(grid).numel(), known)
        denoiser = self.denoiser.cached() if traits_of(self.denoiser).has_cache else self.denoiser
        if isinstance(self.tokenizer, RowTokenizer):
            layout = self.tokenizer.layout
            denoiser = StreamDenoiser(denoiser, layout, has_stream_times=len(layout.streams) > 1)
        sampler = self.effective_sampler()
        assert isinstance(sampler, MaskedSampler)
        time = training_time(sampler.unmasking.schedule, self.schedule)
        prompt = self._prompt(known)
        denoise = self.guidance.bind(denoiser, cond, mask_id=mask_id, network_time=time, prompt=prompt)
        rng, streams = Rng.per_sample(seeds), self._streams(x_1.shape[1])
        x_0 = sampler(denoise, x_1, rng, mask_id=mask_id, grid=grid, on_step=on_step, streams=streams)
        # A patch may be known in part: it is generated as a whole, and its known pixels are restored.
        return torch.where(known.isnan(), x_0, known) if known is not None and x_0.is_floating_point() else x_0

    def _grid(self) -> tuple[int, ...]:
        if isinstance(self.tokenizer, RowTokenizer):
            return self.tokenizer.layout.shape
        return self.tokenizer.grid if isinstance(self.tokenizer, ImageTokenizer) else (self.length,)

    def _prompt(self, known: Tensor | None) -> Tensor | None:
        """(B, L) bool, what guidance is by: the known tokens of a text, and streams that are known as a whole."""
        if known is None or isinstance(self.tokenizer, ImageTokenizer):
            return None
        is_known = known >= 0
        if not isinstance(self.tokenizer, RowTokenizer):
            return is_known
        layout = self.tokenizer.layout
        return layout.over_row(torch.stack([is_known[:, place].all(1) for place in layout.places], 1))

    def _streams(self, length: int) -> TokenLayout | None:
        """The streams of a row, or a text with special tokens; None for all others, which need none."""
        if isinstance(self.tokenizer, RowTokenizer):
            return self.tokenizer.layout
        if isinstance(self.tokenizer, ImageTokenizer) or self.tokenizer.specials == Specials():
            return None
        return text_layout(self.tokenizer.vocab_size, length, self.tokenizer.specials)

    def _masked(self, n: int, length: int, known: Tensor | None) -> Tensor:
        """x_1: known tokens and [MASK], (n, length) int64, or (n, length, D) float for continuous tokens."""
        if isinstance(self.tokenizer, ImageTokenizer) and not self.tokenizer.has_discrete_tokens:
            if known is not None:
                return put_masks(known, is_mask(known, 0), 0)
            return torch.full((n, length, self.tokenizer.token_width), torch.nan, device=self.device)
        x_1 = torch.full((n, length), self.tokenizer.vocab_size, device=self.device)
        if known is None:
            return x_1
        self._check_known(known)
        return torch.where(known >= 0, known, x_1)

    def _condition(
        self, n: int, labels: Tensor | None, captions: Tensor | None, visible: Tensor | None
    ) -> Condition | None:
        if labels is None and captions is None and visible is None:
            return None
        labels = torch.full((n,), NULL) if labels is None else labels
        return Condition(labels.to(self.device), None if captions is None else captions.to(self.device), visible)

    def _field(
        self, process: Gaussian, rng: Rng, cond: Condition | None, known: Tensor | None, on_step: OnStep | None
    ) -> Tensor:
        """(B, L, D) of a Gaussian process."""
        assert isinstance(self.sampler, FieldSampler)
        assert isinstance(self.tokenizer, ImageTokenizer)
        n_tokens = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        noise = process.prior((rng.n_rows, n_tokens, self.tokenizer.token_width), rng, self.device)
        denoise = self.guidance.bind(
            Preconditioned(process, self.denoiser),
            cond,
            time_step=1 / process.steps if process.steps else 0.0,
            patch_area=self.tokenizer.patch_area,
        )
        return self.sampler(denoise, noise, rng, process=process, known=known, on_step=on_step)

    def effective_sampler(self) -> MaskedSampler | FieldSampler:
        """The sampler with the blocks and learned rates of the network."""
        if isinstance(self.sampler, FieldSampler):
            return self.sampler
        sampler, traits = self.sampler, traits_of(self.denoiser)
        if traits.groups is not None or traits.block_length is not None:
            sampler = replace(sampler, lookahead=None)  # it sees no masks after its block
        if sampler.lookahead is not None and traits.has_fixed_grid:
            raise UserError("lookahead shortens rows, and this network takes one length; use sampler autoregressive")
        if traits.has_exponents:
            sampler = with_exponents(sampler, self.denoiser.exponents.detach().cpu())
        if traits.groups is not None:
            return replace(sampler, layout=Groups(traits.groups), unmasking=Scheduled(), steps=traits.groups.n_groups)
        block_length = traits.block_length
        return sampler if block_length is None else replace(sampler, layout=Blocks(block_length, "row"))

    def _check_known(self, known: Tensor) -> None:
        traits = traits_of(self.denoiser)
        if traits.groups is not None:
            turn = traits.groups.index.to(known.device)
        elif traits.block_length is not None:
            turn = torch.arange(known.shape[1], device=known.device) // traits.block_length
        else:
            return
        first_gap = torch.where(known < 0, turn, known.shape[1]).amin(1)
        last_known = torch.where(known >= 0, turn, -1).amax(1)
        if bool((last_known > first_gap).any()) and traits.groups is not None:
            raise UserError(
                f"this checkpoint generates in a fixed order ({traits.groups.order}, {traits.groups.n_groups} groups) "
                "and cannot see tokens that come after a gap; use a bidirectional checkpoint (maskgit)"
            )
        if bool((last_known > first_gap).any()):
            raise UserError(
                "this checkpoint generates from left to right and cannot see text after a gap; give a prompt only, or "
                "use a bidirectional checkpoint (mdlm)"
            )

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L), or (B, L, D) -> images (B, C, H, W) uint8 on the CPU."""
        assert isinstance(self.tokenizer, ImageTokenizer)
        return to_uint8(self.tokenizer.decode(tokens)).cpu()

    def images(
        self,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        known: Tensor | None = None,
        captions: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) uint8 on the CPU, one a seed."""
        return self.decode(self.tokens(seeds, labels, known, captions=captions))

    def texts(self, tokens: Tensor, known: Tensor | None = None, is_answer: bool = False) -> list[str]:
        """Tokens (B, L) -> a text each, `_` where one is still masked; without prefix and what follows its end.

        Args:
            tokens: rows.
            known: (1, L) or (B, L), -1 at generated tokens; None if all are.
            is_answer: leave out the known tokens at the beginning.
        """
        assert isinstance(self.tokenizer, TextTokenizer)
        tokens, specials = tokens.cpu(), self.tokenizer.specials
        is_open = torch.ones_like(tokens, dtype=torch.bool) if known is None else (known < 0).cpu().expand_as(tokens)
        ends = end_of_text(tokens, is_open, specials.stop).tolist()
        starts = [_start(row, tuple(specials.prefix)) for row in tokens]
        if is_answer:
            starts = is_open.int().argmax(1).tolist()
        return [self.tokenizer.decode(row[a:b]) for row, a, b in zip(tokens, starts, ends, strict=True)]


def _start(row: Tensor, prefix: tuple[int, ...]) -> int:
    """How many tokens at the beginning of a row are the prefix of every text."""
    return len(prefix) if tuple(row[: len(prefix)].tolist()) == prefix else 0
