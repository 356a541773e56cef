"""The masked decoding loop: order x unmasking x remask x layout. Published samplers are its `presets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.positions import categorical_at, prediction_at
from maskgen.core.predictions import Categorical, Crossing, Denoise, Prediction
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.processes import is_mask, put_masks
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.masked.beam import beam_search, require_beam
from maskgen.samplers.masked.ending import ended
from maskgen.samplers.masked.horizon import up_to_horizon
from maskgen.samplers.masked.joint import Joint, PerToken
from maskgen.samplers.masked.layout import Full, Layout
from maskgen.samplers.masked.order import Confidence, Order, Proposal, highest
from maskgen.samplers.masked.remask import NoRemask, Planned, Remask
from maskgen.samplers.masked.source import Decoded, Sampled, TokenSource
from maskgen.samplers.masked.spans import Span, spans
from maskgen.samplers.masked.state import Block, Reveal, State, tokens_of
from maskgen.samplers.masked.unmasking import Clock, Move, Scheduled, Unmasking

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, largest number of steps, x_s); a decoding may stop early."""

DPM_HEAD = FieldSampler("dpm_single", 8, "logsnr", order=3, sigma_min=0.01)
"""The head of eMIGM. Its error from noise 80 to 0.01 times the signal is at most that of the published 164 to 0.006."""
NO_PROBABILITIES = (
    "this sampler uses token probabilities, but these tokens are continuous; use mar or ancestral, or order random or "
    "halton with top_p 1"
)
NO_NOISE = "temperature scales the noise of the head's solver, and this solver is deterministic; use ddpm"


@dataclass(frozen=True)
class MaskedSampler:
    """Generates the masked tokens of a batch step by step; all other tokens are known and never change.

    The network is evaluated only on rows in which a step reveals tokens. Tokens are discrete (B, L), or continuous
    (B, L, D) with NaN as [MASK]. Continuous tokens have no probabilities, so they need settings without
    `needs_probabilities`.

    Args:
        order: which tokens are revealed first.
        unmasking: how many tokens a step reveals.
        remask: which revealed tokens are masked again.
        layout: which positions are decoded together.
        steps: T; some unmasking schedules have their own number.
        temperature: of the token distributions; 0 takes the mode.
        top_p: share of the probability, after temperature, that tokens are drawn from; 1 is off.
        head: sampler of a diffusion head.
        crossing: whether the nucleus includes the token that crosses `top_p`.
        top_k: number of the likeliest tokens that a token is drawn from; 0 is off.
        lookahead: masks that the network sees after the block that is decoded; None for all of the row.
        beam: number of texts that a beam search keeps; 1 draws tokens.
    """

    order: Order = field(default_factory=Confidence)
    unmasking: Unmasking = field(default_factory=Scheduled)
    remask: Remask = field(default_factory=NoRemask)
    layout: Layout = field(default_factory=Full)
    steps: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    head: FieldSampler = DPM_HEAD
    crossing: Crossing = "include"
    top_k: int = 0
    lookahead: int | None = None
    beam: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 = off, got {self.top_p}")
        if self.top_k < 0 or (self.lookahead is not None and self.lookahead < 0):
            raise ValueError(f"top_k and lookahead must be at least 0, got {self.top_k} and {self.lookahead}")
        require_beam(self.beam, self.layout, self.unmasking, self.remask, self._source())
        if isinstance(self.unmasking, Joint) and self.top_k:
            raise ValueError("unmasking joint draws from all tokens; use top_k 0, or unmasking bernoulli")
        if isinstance(self.unmasking, Joint) and not self.remask.is_off:
            raise ValueError("unmasking joint cannot mask tokens again; use remask none, or unmasking bernoulli")

    @property
    def needs_probabilities(self) -> bool:
        """Whether it uses token probabilities beyond drawing from them."""
        narrows = self.top_p < 1 or self.top_k > 0 or self.lookahead is not None or self.beam > 1
        return narrows or self._chooses_by_prediction or self.remask.needs_confidence

    @property
    def _chooses_by_prediction(self) -> bool:
        return self.order.needs_prediction or self.unmasking.needs_prediction

    @property
    def has_fitting_temperature(self) -> bool:
        """Whether a temperature other than 1 has an effect on a diffusion head."""
        return self.temperature == 1 or self.head.draws_noise

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        x_1: Tensor,
        rng: Rng,
        *,
        mask_id: int,
        grid: tuple[int, ...] | None = None,
        on_step: OnStep | None = None,
        source: TokenSource | None = None,
        streams: TokenLayout | None = None,
    ) -> Tensor:
        """x_0 of the shape of x_1.

        Args:
            denoise: the network with condition and guidance bound.
            x_1: (B, L) int64 or (B, L, D) float; [MASK] at tokens to generate, known tokens elsewhere.
            rng: `Rng.per_sample`, for samples that depend on their own seed only.
            mask_id: id of [MASK] among discrete tokens.
            grid: shape of the token grid; (L,) by default.
            on_step: called after each step.
            source: of the tokens; by default they are sampled with `temperature` and `top_p`.
            streams: of the row, None for one stream without forbidden and stop tokens.

        Raises:
            UserError: settings that continuous tokens do not have; a source that these settings cannot use.
        """
        by, allowed = self._sampled(source, x_1), None if streams is None else streams.allowed(x_1.device)
        x_t, done, is_open = x_1.clone(), 0, is_mask(x_1, mask_id)
        plan = list(spans(self.layout, self.unmasking, self.steps, is_open, streams))
        row = Block(denoise, mask_id, grid or x_1.shape[1:2], source or by, by, allowed, rng, is_open)
        if self.beam > 1:
            return beam_search(plan, row, self._block, x_t, self.beam, streams, on_step)
        for span in plan:
            x_t, span = ended(x_t, is_open, mask_id, span, streams if source is None else None)
            for x_s in self._decode(self._block(row, span), x_t, span.n_steps):
                x_t, done = x_s, done + 1
                if on_step is not None:
                    on_step(done, sum(span.n_steps for span in plan), x_t)
        return x_t

    def _block(self, row: Block, span: Span) -> Block:
        """A block of a row, which is decoded alone.

        It may take fewer steps in another batch, on which the random numbers of others must not depend. The network is
        given no more of a row than `lookahead` tokens after it.
        """
        own = row.rng if self.layout.is_single(row.is_open.shape[1]) else row.rng.fork("span", span.index)
        seen = row.denoise
        if self.lookahead is not None:
            seen = up_to_horizon(seen, self.layout.blocks(row.is_open), span.index, self.lookahead, row.mask_id)
        return replace(row, denoise=seen, rng=own, is_open=span.is_open)

    def _sampled(self, source: TokenSource | None, x_1: Tensor) -> Sampled:
        """How tokens are sampled where the source, if any, does not give them."""
        if x_1.is_floating_point() and self.needs_probabilities:
            raise UserError(NO_PROBABILITIES)
        if source is not None:
            self._check_source(source, x_1)
        return source if isinstance(source, Sampled) else self._source()

    def _source(self) -> Sampled:
        return Sampled(self.temperature, self.top_p, self.crossing, self.top_k)

    def _check_source(self, source: TokenSource, x_1: Tensor) -> None:
        name = type(source).__name__
        if x_1.is_floating_point():
            raise UserError(f"token source {name} needs discrete tokens")
        if source.is_recorded and (isinstance(self.unmasking, Joint) or not self.remask.is_off or self.beam > 1):
            raise UserError(f"token source {name} needs remask none and another unmasking schedule than joint; beam 1")
        if isinstance(source, Decoded) and (self.order.needs_tokens or self.unmasking.needs_tokens):
            raise UserError(
                "tokens to decode are not known before their positions are chosen; use order random, halton, entropy "
                "or margin, and no unmasking schedule by confidence"
            )

    def _decode(self, block: Block, x_t: Tensor, n_steps: int) -> Iterator[Tensor]:
        """x_s after each of at most `n_steps` steps, until no token is masked or can be masked again."""
        n_start = block.is_open.sum(1).cpu()
        t = torch.ones(len(x_t), dtype=torch.float64)
        clock = Clock(0, n_steps, t, n_start, n_start, x_t.shape[1])
        state = State(x_t, torch.zeros(x_t.shape[:2], dtype=torch.float64, device=x_t.device), clock)
        for step in range(n_steps):
            if self.remask.is_off and not state.clock.n_left.any():
                return
            clock = replace(state.clock, step=step, t=self.unmasking.time(state.clock))
            state = self._step(block, replace(state, clock=clock))
            yield state.x_t

    def _step(self, block: Block, state: State) -> State:
        """One step t -> s."""
        clock, is_masked = state.clock, block.is_open & is_mask(state.x_t, block.mask_id)
        s = self.unmasking.next_time(clock, block.rng)
        is_remasked, sigma = self._draw_remask(block, state, s, block.is_open & ~is_masked)
        n_remasked = torch.zeros_like(clock.n_left) if is_remasked is None else is_remasked.sum(1).cpu()
        move = Move(clock, s, sigma, n_remasked)
        if isinstance(self.remask, Planned):
            reveal, is_remasked = self._plan(self.remask, block, state.x_t, is_masked, move)
            n_remasked = is_remasked.sum(1).cpu()
        else:
            reveal = self._reveal(block, state.x_t, is_masked, move)
        x_s, confidence = state.x_t.clone(), state.confidence
        x_s[reveal.where] = tokens_of(block, reveal)
        if self.remask.needs_confidence:
            assert isinstance(reveal.prediction, Categorical)
            assert reveal.tokens is not None
            confidence = confidence.clone()
            log_prob = reveal.prediction.log_prob(reveal.tokens)[reveal.where[reveal.queried]]
            confidence[reveal.where] = log_prob.double().exp()
        if is_remasked is not None:
            x_s = put_masks(x_s, is_remasked, block.mask_id)
        return State(x_s, confidence, replace(clock, t=s, n_left=clock.n_left - reveal.n + n_remasked))

    def _reveal(self, block: Block, x_t: Tensor, is_masked: Tensor, move: Move) -> Reveal:
        """Choose positions and tokens; the network is evaluated after the choice if that does not depend on it."""
        if isinstance(self.unmasking, Joint):
            return self._reveal_jointly(self.unmasking, block, x_t, is_masked, move)
        place = Proposal(is_masked, move.clock.step, move.clock.n_steps, block.grid)
        if not self._chooses_by_prediction:
            n = self._count(move, block.rng)
            where = highest(self.order.score(place, block.rng), n)
            return Reveal(where, n, where, *self._query(block, x_t, move, where, n))
        n = move.clock.n_left if self.unmasking.needs_prediction else self._count(move, block.rng)
        queried = is_masked & (n > 0).to(is_masked.device)[:, None]
        prediction, tokens = self._query(block, x_t, move, queried, n)
        assert isinstance(prediction, Categorical)
        tempered = block.by.tempered(prediction) if self.order.is_tempered else None
        proposal = replace(place, where=queried, prediction=prediction, tempered=tempered, tokens=tokens)
        if self.unmasking.needs_prediction:
            n = self._count(replace(move, proposal=proposal), block.rng)
        return Reveal(highest(self.order.score(proposal, block.rng), n), n, queried, prediction, tokens)

    def _plan(
        self, planned: Planned, block: Block, x_t: Tensor, is_masked: Tensor, move: Move
    ) -> tuple[Reveal, Tensor]:
        """Choose the positions that are visible after the step; also those (B, L) that are masked again."""
        is_open, n_open, query = block.is_open, block.is_open.sum(1).cpu(), None
        proposal = Proposal(is_open, move.clock.step, move.clock.n_steps, block.grid)
        if self._chooses_by_prediction:
            query = prediction, drawn = self._query(block, x_t, move, is_open, n_open)
            assert isinstance(prediction, Categorical)
            assert drawn is not None
            tempered = block.by.tempered(prediction) if self.order.is_tempered else None
            tokens = torch.where(is_masked[is_open], drawn, x_t[is_open])
            proposal = replace(proposal, prediction=prediction, tempered=tempered, tokens=tokens)
            move = replace(move, proposal=proposal.only(is_masked))
        n_visible = n_open - move.clock.n_left + self._count(move, block.rng)
        score = planned.weighted(self.order.log_score(proposal, block.rng), is_masked)
        is_visible = highest(score, n_visible) & is_open
        where, is_remasked = is_visible & is_masked, is_open & ~is_visible & ~is_masked
        n = where.sum(1).cpu()
        if query is None:
            return Reveal(where, n, where, *self._query(block, x_t, move, where, n)), is_remasked
        return Reveal(where, n, is_open, *query), is_remasked

    def _reveal_jointly(self, joint: Joint, block: Block, x_t: Tensor, is_masked: Tensor, move: Move) -> Reveal:
        """Choose positions and tokens in one draw."""
        prediction = categorical_at(block.denoise(x_t, move.clock.t, where=is_masked), is_masked)
        prediction = block.within_streams(prediction)
        by = block.by
        kept = prediction.nucleus(by.top_p, by.temperature, by.crossing)
        tokens = joint.draw(kept, move.clock, move.s, by.temperature, block.rng)
        where = is_masked.clone()
        where[is_masked] = tokens < prediction.logits.shape[-1]
        return Reveal(where, where.sum(1).cpu(), is_masked, prediction, tokens)

    def _query(
        self, block: Block, x_t: Tensor, move: Move, where: Tensor, n: Tensor
    ) -> tuple[Prediction, Tensor | None]:
        """The prediction at `where` and a token for each position, (M,) or (M, D).

        The forward pass is skipped if no row reveals a token, n (B,) = 0; the same random numbers are consumed.
        """
        prediction: Prediction = Categorical(torch.zeros(0, 2, dtype=torch.float64, device=x_t.device), where)
        if bool(n.any()):
            prediction = prediction_at(block.denoise(x_t, self.unmasking.query_time(move), where=where), where)
        if isinstance(prediction, Categorical) and not x_t.is_floating_point():
            prediction = block.within_streams(prediction)
            return prediction, block.source.propose(prediction, block.by, block.rng)
        if not bool(n.any()):
            return prediction, x_t[where]
        if isinstance(prediction, DiffusionHead):
            if not self.has_fitting_temperature:
                raise UserError(NO_NOISE)
            prediction = prediction.drawn_by(self.head)
        # The number of draws of a continuous token depends on its prediction: a fork keeps all other draws the same.
        return prediction, prediction.sample(block.rng.fork("vectors", move.clock.step), self.temperature)

    def _count(self, move: Move, rng: Rng) -> Tensor:
        """(B,) int64, tokens to reveal: all that are left in the last step."""
        left = move.clock.n_left
        return left if move.clock.is_last else self.unmasking.count(move, rng).clamp(min=0).minimum(left)

    def _draw_remask(self, block: Block, state: State, s: Tensor, is_revealed: Tensor) -> tuple[Tensor | None, Tensor]:
        """The revealed tokens that are masked again (None if the policy is off), and sigma (B,) of the count."""
        if self.remask.is_off or self.remask.is_planned or state.clock.is_last:
            return None, torch.zeros_like(s)
        alphas = self.unmasking.schedule.alpha(state.clock.t), self.unmasking.schedule.alpha(s)
        uniform = block.rng.uniform(is_revealed.shape, device=is_revealed.device)
        chances = self.remask.chances(*alphas, is_revealed, state.confidence)
        return is_revealed & (uniform < chances), self.remask.sigma(*alphas)


def with_exponents(sampler: MaskedSampler, exponents: Tensor) -> MaskedSampler:
    """The sampler with learned rates, alpha = 1 - t^exponents (V,), if it draws jointly; any other unchanged."""
    if not isinstance(sampler.unmasking, Joint):
        return sampler
    return replace(sampler, unmasking=Joint(PerToken(exponents)))
