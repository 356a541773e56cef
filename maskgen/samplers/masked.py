"""The one masked decoding loop: order x quota x remask x layout. A published sampler is a row of `presets`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskgen.predictions import Denoise
from maskgen.rng import Rng
from maskgen.samplers.layout import Full, Layout
from maskgen.samplers.order import Confidence, Order, Proposal
from maskgen.samplers.quota import Clock, Quota, Scheduled
from maskgen.samplers.remask import NoRemask, Remask

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, steps in all, x_s (B, L))."""


@dataclass(frozen=True)
class MaskedSampler:
    """Fills the [MASK]s of a batch step by step; everything else is known and never changes.

    Args:
        order: which tokens first.
        quota: how many a step.
        remask: which revealed tokens are masked again.
        layout: which positions together.
        steps: T; some quotas have their own number.
        temperature: of the token draws; 0 takes the mode.
    """

    order: Order = field(default_factory=Confidence)
    quota: Quota = field(default_factory=Scheduled)
    remask: Remask = field(default_factory=NoRemask)
    layout: Layout = field(default_factory=Full)
    steps: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")

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
        """x_0 (B, L) int64.

        Args:
            denoise: the network with condition and guidance bound.
            x_1: (B, L) int64; `mask_id` where a token is wanted, known tokens elsewhere.
            rng: `Rng.per_sample`, for samples that depend on their own seed only.
            mask_id: the id of [MASK].
            grid: shape of the token grid for orders that live on one; (L,) if not given.
            on_step: watches.
        """
        x_t, length = x_1.clone(), x_1.shape[1]
        spans = self.layout.spans(length)
        shares = [max((self.steps + index) // len(spans), 1) for index in reversed(range(len(spans)))]
        n_steps = [self.quota.n_steps(share, end - start) for share, (start, end) in zip(shares, spans, strict=True)]
        done = 0
        for (start, end), n_span in zip(spans, n_steps, strict=True):
            is_open = torch.zeros_like(x_1, dtype=torch.bool)
            is_open[:, start:end] = x_1[:, start:end] == mask_id
            n_start = is_open.sum(1).cpu()
            clock = Clock(0, n_span, torch.ones(len(x_1), dtype=torch.float64), n_start, n_start, length)
            for step in range(n_span):
                clock = Clock(step, n_span, clock.t, n_start, clock.n_left, length)
                x_t, clock = self._step(denoise, x_t, is_open, clock, rng, mask_id, grid or (length,))
                done += 1
                if on_step is not None:
                    on_step(done, sum(n_steps), x_t)
        return x_t

    def _step(
        self,
        denoise: Denoise,
        x_t: Tensor,
        is_open: Tensor,
        clock: Clock,
        rng: Rng,
        mask_id: int,
        grid: tuple[int, ...],
    ) -> tuple[Tensor, Clock]:
        """One step t -> s of the positions `is_open` (B, L)."""
        is_masked = is_open & (x_t == mask_id)
        s = self.quota.next_time(clock, rng)
        is_remasked, sigma = self._draw_remask(is_open & ~is_masked, clock, s, rng)
        n_remasked = torch.zeros_like(clock.n_left) if is_remasked is None else is_remasked.sum(1).cpu()
        if clock.step == clock.n_steps - 1:
            n_reveal = clock.n_left
        else:
            n_reveal = self.quota.count(clock, s, sigma, n_remasked, rng).clamp(min=0).minimum(clock.n_left)
        place = Proposal(is_masked, (clock.step + 1) / clock.n_steps, grid)
        x_s = x_t.clone()
        if self.order.needs_prediction:
            prediction = denoise(x_t, clock.t, where=is_masked)
            tokens = prediction.sample(rng, self.temperature)
            score = self.order.score(Proposal(is_masked, place.progress, grid, prediction, tokens), rng)
            is_revealed = _first(score, n_reveal)
            x_s[is_revealed] = tokens[is_revealed[is_masked]]
        else:
            is_revealed = _first(self.order.score(place, rng), n_reveal)
            x_s[is_revealed] = denoise(x_t, clock.t, where=is_revealed).sample(rng, self.temperature)
        if is_remasked is not None:
            x_s = x_s.masked_fill(is_remasked, mask_id)
        left = clock.n_left - n_reveal + n_remasked
        return x_s, Clock(clock.step, clock.n_steps, s, clock.n_start, left, clock.length)

    def _draw_remask(self, is_revealed: Tensor, clock: Clock, s: Tensor, rng: Rng) -> tuple[Tensor | None, Tensor]:
        """The revealed tokens that are masked again (None where the policy is off), and their chance (B,)."""
        if self.remask.is_off or clock.step == clock.n_steps - 1:
            return None, torch.zeros_like(s)
        sigma = self.remask.sigma(self.quota.schedule.alpha(clock.t), self.quota.schedule.alpha(s))
        uniform = rng.uniform(is_revealed.shape, device=is_revealed.device)
        return is_revealed & (uniform < sigma.to(uniform)[:, None]), sigma


def _first(score: Tensor, n: Tensor) -> Tensor:
    """(B, L) bool, the n (B,) highest of each row: by rank, so the count is exact under ties."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.lt(n.to(rank.device)[:, None])
