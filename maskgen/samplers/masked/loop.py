"""The one masked decoding loop: order x quota x remask x layout. A published sampler is a row of `presets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.positions import categorical_at, prediction_at
from maskgen.core.predictions import Categorical, Denoise, Prediction
from maskgen.core.rng import Rng
from maskgen.processes import is_mask, put_masks
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.masked.joint import Joint, PerToken
from maskgen.samplers.masked.layout import Full, Layout
from maskgen.samplers.masked.order import Confidence, Order, Proposal
from maskgen.samplers.masked.remask import NoRemask, Remask
from maskgen.samplers.masked.unmasking import Clock, Move, Quota, Scheduled

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, steps in all at most, x_s); a decoding that is done early stops."""

DPM_HEAD = FieldSampler("dpm", 8, "karras")
"""From noise 80 times the signal: where all is noise, eps hardly says x_0, and a long first step believes it."""
NO_PROBABILITIES = (
    "these tokens are vectors and have no probabilities, which this sampler looks at; take one with order random or "
    "halton, say mar or ancestral, and top_p 1"
)
NO_NOISE = (
    "temperature multiplies the noise of the head's steps, and its solver adds none; use head ddpm, or temperature 1"
)


@dataclass(frozen=True)
class _Span:
    """Positions that are decoded together: what stays the same from step to step.

    Attributes:
        denoise, rng, mask_id, grid: as `MaskedSampler` was given.
        is_open: (B, L) bool, the positions.
    """

    denoise: Denoise
    rng: Rng
    mask_id: int
    grid: tuple[int, ...]
    is_open: Tensor


@dataclass(frozen=True)
class _State:
    """x_t (B, L) or (B, L, D); confidence (B, L) float64, each token's probability when it was revealed; the clock."""

    x_t: Tensor
    confidence: Tensor
    clock: Clock


@dataclass(frozen=True)
class _Reveal:
    """What a step reveals.

    Attributes:
        where: (B, L) bool, the positions.
        n: (B,) int64, how many, on the CPU.
        asked: (B, L) bool, the M positions the network was asked about: all of `where` and perhaps more.
        prediction, tokens: its answer, packed, and the token (M,) or (M, D) drawn for each.
    """

    where: Tensor
    n: Tensor
    asked: Tensor
    prediction: Prediction
    tokens: Tensor


@dataclass(frozen=True)
class MaskedSampler:
    """Fills the [MASK]s of a batch step by step; everything else is known and never changes.

    The network is asked only about rows in which the step can reveal something. Tokens are numbers (B, L), or vectors
    (B, L, D) that NaN masks; vectors have no probabilities, so only some settings decode them (`needs_probabilities`).

    Args:
        order: which tokens first.
        quota: how many a step.
        remask: which revealed tokens are masked again.
        layout: which positions together.
        steps: T; some quotas have their own number.
        temperature: of the token draws; 0 takes the mode.
        top_p: share of the probability, after temperature, that tokens are drawn from; orders see the whole.
        head: how a diffusion head draws its vectors.
    """

    order: Order = field(default_factory=Confidence)
    quota: Quota = field(default_factory=Scheduled)
    remask: Remask = field(default_factory=NoRemask)
    layout: Layout = field(default_factory=Full)
    steps: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    head: FieldSampler = DPM_HEAD

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 = off, got {self.top_p}")
        if isinstance(self.quota, Joint) and not self.remask.is_off:
            raise ValueError("the joint quota masks nothing again; use remask none, or quota bernoulli")

    @property
    def needs_probabilities(self) -> bool:
        """Whether it looks at more of a prediction than the tokens drawn from it."""
        looks = self.order.needs_prediction or self.quota.needs_prediction or self.remask.needs_confidence
        return looks or isinstance(self.quota, Joint) or self.top_p < 1

    @property
    def has_fitting_temperature(self) -> bool:
        """Whether a head's steps have noise for the temperature to multiply."""
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
    ) -> Tensor:
        """x_0 of the shape of x_1.

        Args:
            denoise: the network with condition and guidance bound.
            x_1: (B, L) int64 or (B, L, D) float; [MASK] where a token is wanted, known tokens elsewhere.
            rng: `Rng.per_sample`, for samples that depend on their own seed only.
            mask_id: the id of [MASK] among numbers.
            grid: shape of the token grid for orders that live on one; (L,) if not given.
            on_step: watches; the number of steps it is told is the most there can be.

        Raises:
            UserError: settings that look at probabilities, or a temperature that nothing heeds, for vectors.
        """
        if x_1.is_floating_point() and self.needs_probabilities:
            raise UserError(NO_PROBABILITIES)
        x_t, length = x_1.clone(), x_1.shape[1]
        spans = self.layout.spans(length)
        shares = [max((self.steps + index) // len(spans), 1) for index in reversed(range(len(spans)))]
        n_steps = [self.quota.n_steps(share, end - start) for share, (start, end) in zip(shares, spans, strict=True)]
        done = 0
        for index, ((start, end), n_span) in enumerate(zip(spans, n_steps, strict=True)):
            is_open = is_mask(x_1, mask_id)
            is_open[:, :start] = is_open[:, end:] = False
            # A span may end sooner in another batch: the next one must not begin where this one's stream stopped.
            stream = rng if len(spans) == 1 else rng.fork("span", index)
            for x_s in self._decode(_Span(denoise, stream, mask_id, grid or (length,), is_open), x_t, n_span):
                x_t, done = x_s, done + 1
                if on_step is not None:
                    on_step(done, sum(n_steps), x_t)
        return x_t

    def _decode(self, span: _Span, x_t: Tensor, n_steps: int) -> Iterator[Tensor]:
        """x_s after each step, at most `n_steps`, until nothing is left and nothing comes back."""
        n_start = span.is_open.sum(1).cpu()
        t = torch.ones(len(x_t), dtype=torch.float64)
        clock = Clock(0, n_steps, t, n_start, n_start, x_t.shape[1])
        state = _State(x_t, torch.zeros(x_t.shape[:2], dtype=torch.float64, device=x_t.device), clock)
        for step in range(n_steps):
            if self.remask.is_off and not state.clock.n_left.any():
                return
            clock = replace(state.clock, step=step, t=self.quota.time(state.clock))
            state = self._step(span, replace(state, clock=clock))
            yield state.x_t

    def _step(self, span: _Span, state: _State) -> _State:
        """One step t -> s."""
        clock, is_masked = state.clock, span.is_open & is_mask(state.x_t, span.mask_id)
        s = self.quota.next_time(clock, span.rng)
        is_remasked, sigma = self._draw_remask(span, state, s, span.is_open & ~is_masked)
        n_remasked = torch.zeros_like(clock.n_left) if is_remasked is None else is_remasked.sum(1).cpu()
        reveal = self._reveal(span, state.x_t, is_masked, Move(clock, s, sigma, n_remasked))
        is_drawn = reveal.where[reveal.asked]
        x_s, confidence = state.x_t.clone(), state.confidence
        x_s[reveal.where] = reveal.tokens[is_drawn]
        if self.remask.needs_confidence:
            assert isinstance(reveal.prediction, Categorical)
            confidence = confidence.clone()
            confidence[reveal.where] = reveal.prediction.log_prob(reveal.tokens)[is_drawn].double().exp()
        if is_remasked is not None:
            x_s = put_masks(x_s, is_remasked, span.mask_id)
        return _State(x_s, confidence, replace(clock, t=s, n_left=clock.n_left - reveal.n + n_remasked))

    def _reveal(self, span: _Span, x_t: Tensor, is_masked: Tensor, move: Move) -> _Reveal:
        """Ask the network and choose; an order and a quota that need no prediction choose first and ask then."""
        if isinstance(self.quota, Joint):
            return self._reveal_jointly(self.quota, span, x_t, is_masked, move)
        place = Proposal(is_masked, (move.clock.step + 1) / move.clock.n_steps, span.grid)
        if not (self.order.needs_prediction or self.quota.needs_prediction):
            n = self._count(move, span.rng)
            where = _first(self.order.score(place, span.rng), n)
            return _Reveal(where, n, where, *self._ask(span, x_t, move, where, n))
        n = move.clock.n_left if self.quota.needs_prediction else self._count(move, span.rng)
        asked = is_masked & (n > 0).to(is_masked.device)[:, None]
        prediction, tokens = self._ask(span, x_t, move, asked, n)
        assert isinstance(prediction, Categorical)
        proposal = replace(place, where=asked, prediction=prediction, tokens=tokens)
        if self.quota.needs_prediction:
            n = self._count(replace(move, proposal=proposal), span.rng)
        return _Reveal(_first(self.order.score(proposal, span.rng), n), n, asked, prediction, tokens)

    def _reveal_jointly(self, quota: Joint, span: _Span, x_t: Tensor, is_masked: Tensor, move: Move) -> _Reveal:
        """One draw a position says whether it is revealed and what it is."""
        prediction = categorical_at(span.denoise(x_t, move.clock.t, where=is_masked), is_masked)
        kept = prediction.nucleus(self.top_p, self.temperature)
        tokens = quota.draw(kept, move.clock, move.s, self.temperature, span.rng)
        where = is_masked.clone()
        where[is_masked] = tokens < prediction.logits.shape[-1]
        return _Reveal(where, where.sum(1).cpu(), is_masked, prediction, tokens)

    def _ask(self, span: _Span, x_t: Tensor, move: Move, where: Tensor, n: Tensor) -> tuple[Prediction, Tensor]:
        """The prediction at `where` and a token drawn for each, (M,) or (M, D).

        Where n (B,), which is on the CPU, wants nothing of any row, no network runs; the same numbers are drawn.
        """
        prediction: Prediction = Categorical(torch.zeros(0, 2, dtype=torch.float64, device=x_t.device), where)
        if bool(n.any()):
            prediction = prediction_at(span.denoise(x_t, self.quota.asked_at(move), where=where), where)
        if isinstance(prediction, Categorical) and not x_t.is_floating_point():
            return prediction, prediction.nucleus(self.top_p, self.temperature).sample(span.rng, self.temperature)
        if not bool(n.any()):
            return prediction, x_t[where]
        if isinstance(prediction, DiffusionHead):
            if not self.has_fitting_temperature:
                raise UserError(NO_NOISE)
            prediction = prediction.drawn_by(self.head)
        # How much a vector draws is its prediction's affair: a stream of the step's own keeps the rest as it is.
        return prediction, prediction.sample(span.rng.fork("vectors", move.clock.step), self.temperature)

    def _count(self, move: Move, rng: Rng) -> Tensor:
        """(B,) int64 tokens to reveal: in the last step all that is left."""
        left = move.clock.n_left
        return left if move.clock.is_last else self.quota.count(move, rng).clamp(min=0).minimum(left)

    def _draw_remask(self, span: _Span, state: _State, s: Tensor, is_revealed: Tensor) -> tuple[Tensor | None, Tensor]:
        """The revealed tokens that are masked again (None where the policy is off), and the quota's sigma (B,)."""
        if self.remask.is_off or state.clock.is_last:
            return None, torch.zeros_like(s)
        alphas = self.quota.schedule.alpha(state.clock.t), self.quota.schedule.alpha(s)
        uniform = span.rng.uniform(is_revealed.shape, device=is_revealed.device)
        chances = self.remask.chances(*alphas, is_revealed, state.confidence)
        return is_revealed & (uniform < chances), self.remask.sigma(*alphas)


def with_exponents(sampler: MaskedSampler, exponents: Tensor) -> MaskedSampler:
    """The sampler with learned rates, 1 - t^exponents (V,), if it draws jointly; any other as it is."""
    if not isinstance(sampler.quota, Joint):
        return sampler
    return replace(sampler, quota=Joint(PerToken(exponents)))


def _first(score: Tensor, n: Tensor) -> Tensor:
    """(B, L) bool, the n (B,) highest of each row: by rank, so the count is exact under ties."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.lt(n.to(rank.device)[:, None])
