"""Processes that turn tokens into [MASK]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.processes.base import PROCESSES, Process
from maskgen.schedules import Cosine, Fixed, Schedule
from maskgen.strategies import Guide, MaskStrategy, Random, first, spread_evenly


def is_mask(x_t: Tensor, mask_id: int) -> Tensor:
    """(B, L) bool, where a token is [MASK]: `mask_id` among numbers (B, L), NaN among vectors (B, L, D)."""
    return x_t.isnan().any(-1) if x_t.is_floating_point() else x_t == mask_id


def put_masks(x: Tensor, where: Tensor, mask_id: int) -> Tensor:
    """The tokens with [MASK] at `where` (B, L) bool; x (B, L) int64, or (B, L, D) float."""
    return x.masked_fill(where[..., None], torch.nan) if x.is_floating_point() else x.masked_fill(where, mask_id)


class Masking(Process):
    """What turns tokens into [MASK]; `mask_id` is V, and 0 where tokens are vectors, which NaN masks."""

    mask_id: int

    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """(B, L) float64 uniform, one a token."""
        return rng.uniform(x_0.shape[:2], device=x_0.device)

    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:  # noqa: ARG002
        """All [MASK]: shape (B, L), or (B, L, D) for vectors."""
        if len(shape) == 3:
            return torch.full(shape, torch.nan, device=device)
        return torch.full(shape, self.mask_id, dtype=torch.long, device=device)


@PROCESSES.register("absorbing")
class Absorbing(Masking):
    """Tokens become [MASK] with chance 1 - alpha(t) (absorbing-state diffusion; MaskGIT's masking).

    Tokens may be numbers, or vectors (MAE, MAR), whose [MASK] is NaN in all D numbers.

    Args:
        vocab_size: V; the mask id is V. 0 for vectors.
        schedule: alpha(t).
        count: `exact`, clamp(round(L * ratio), 1, L) tokens of every row (MaskGIT); or `bernoulli`, every token by
            itself (MD4, MDLM). A strategy other than random then masks L * ratio tokens, rounded at random.
        strategy: which tokens are masked first.
        grid: (h, w) of the tokens, for the strategies that know neighbours; None for a text, which is one line.
        at_least: tokens that are masked in any row (eMIGM: 2).
    """

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule = Cosine(),
        count: Literal["bernoulli", "exact"] = "exact",
        strategy: MaskStrategy = Random(),
        grid: tuple[int, int] | None = None,
        at_least: int = 0,
    ) -> None:
        if at_least < 0:
            raise ValueError(f"at_least must not be negative, got {at_least}")
        self.mask_id = vocab_size
        self.schedule = schedule
        self.count = count
        self.at_least = at_least
        self.strategy = strategy
        self.grid = grid

    def draw_noise(self, x_0: Tensor, rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) scores, the lowest masked first; `guide` for a strategy that asks the network.

        Raises:
            ValueError: tokens of another grid than the process was built for.
        """
        n_rows, length = x_0.shape[:2]
        grid = self.grid or (1, length)
        if grid[0] * grid[1] != length:
            raise ValueError(f"the process is of a grid {grid}, got rows of {length} tokens; build it for their grid")
        scores = self.strategy.scores(n_rows, grid, rng, guide).to(x_0.device)
        if self.count == "exact" or self.strategy.is_independent:
            return scores
        return spread_evenly(scores, rng)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 (B, L) or (B, L, D) with [MASK] where masked; with count `bernoulli`, t may be (B, L)."""
        ratio = self.schedule.mask_ratio(t.double())
        ratio = ratio[:, None] if ratio.ndim == 1 else ratio
        if self.count == "bernoulli":
            is_masked = noise < ratio
            if self.at_least:
                is_masked |= first(noise, torch.full_like(ratio, self.at_least))
        else:
            length = x_0.shape[1]
            is_masked = first(noise, (ratio * length).round().clamp(min(max(self.at_least, 1), length), length))
        return put_masks(x_0, is_masked, self.mask_id)

    def n_masked(self, length: int) -> int | None:
        """How many of L tokens are masked in every row, None where that differs."""
        if self.count == "bernoulli" or not isinstance(self.schedule, Fixed):
            return None
        return min(max(round(self.schedule.ratio * length), self.at_least, 1), length)


@PROCESSES.register("state_dependent")
class StateDependent(Masking):
    """Tokens become [MASK] with chance t^w, w an exponent of each token (GenMD4, arXiv 2406.04329, section 6).

    The exponents are learned, so the network has them and they are an argument here; without, all are 1.

    Args:
        vocab_size: V; the mask id is V.
        t_min: times below are not trained: a closed form says what is left there.
    """

    def __init__(self, vocab_size: int, t_min: float = 1e-3) -> None:
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), got {t_min}")
        self.mask_id = vocab_size
        self.t_min = t_min

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor, exponents: Tensor | None = None) -> Tensor:
        """(B, L) int64 with `mask_id` where masked; `exponents` (V,)."""
        own = torch.ones_like(noise) if exponents is None else exponents[x_0].double()
        return torch.where(noise < t.double()[:, None] ** own, self.mask_id, x_0)
