"""Processes that turn tokens into [MASK], over rows of one or more streams."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout, require_one_stream, vocab_size_of
from maskgen.processes.base import PROCESSES, Process
from maskgen.schedules import Cosine, Fixed, Schedule
from maskgen.strategies import Guide, MaskStrategy, Random, first, spread_evenly

Rounding = Literal["round", "ceil", "floor"]
"""Of L * ratio to a number of masked tokens."""


def is_mask(x_t: Tensor, mask_id: int) -> Tensor:
    """(B, L) bool, where a token is [MASK]: `mask_id` of discrete (B, L), NaN of continuous tokens (B, L, D)."""
    return x_t.isnan().any(-1) if x_t.is_floating_point() else x_t == mask_id


def put_masks(x: Tensor, where: Tensor, mask_id: int) -> Tensor:
    """The tokens with [MASK] at `where` (B, L) bool; x (B, L) int64, or (B, L, D) float."""
    return x.masked_fill(where[..., None], torch.nan) if x.is_floating_point() else x.masked_fill(where, mask_id)


class Masking(Process):
    """Base of the processes that mask.

    Attributes:
        layout: of the rows; a number V stands for one stream of V ids on rows of any length.
        mask_id: V; 0 for continuous tokens, whose [MASK] is NaN.
    """

    layout: TokenLayout | int
    mask_id: int

    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """(B, L) float64 uniform, one a token."""
        return rng.uniform(x_0.shape[:2], device=x_0.device)

    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:  # noqa: ARG002
        """All [MASK]: shape (B, L), or (B, L, D) of continuous tokens."""
        if len(shape) == 3:
            return torch.full(shape, torch.nan, device=device)
        return torch.full(shape, self.mask_id, dtype=torch.long, device=device)


@PROCESSES.register("absorbing")
class Absorbing(Masking):
    """Tokens become [MASK] with chance 1 - alpha(t) (absorbing-state diffusion; MaskGIT's masking).

    Tokens are discrete, or continuous (MAE, MAR) with NaN in all D numbers for [MASK]. In rows of several streams every
    stream has mask counts and an order of its own; times may be its own too.

    Args:
        layout: of the rows; a number V stands for one stream of V ids (0: continuous tokens) on rows of any length.
        schedule: alpha(t).
        count: `exact`, clamp(round(L * ratio), 1, L) tokens of every row (MaskGIT), of several streams round(L * ratio)
            of each and at least 1 of the row; or `bernoulli`, every token independently (MD4, MDLM). A strategy other
            than random then masks L * ratio tokens, rounded at random.
        strategy: which tokens are masked first.
        at_least: tokens that are masked in any row (eMIGM: 2).
        rounding: of L * ratio with count `exact`: `round`, `ceil` (MAGE's and MAR's code) or `floor`.
    """

    strategy: MaskStrategy

    def __init__(
        self,
        layout: TokenLayout | int,
        schedule: Schedule = Cosine(),
        count: Literal["bernoulli", "exact"] = "exact",
        strategy: MaskStrategy = Random(),
        at_least: int = 0,
        rounding: Rounding = "round",
    ) -> None:
        if at_least < 0:
            raise ValueError(f"at_least must be at least 0, got {at_least}")
        if rounding != "round" and count != "exact":
            raise ValueError(f"rounding {rounding} needs count exact, got {count}; change either")
        self.layout, self.mask_id = layout, vocab_size_of(layout)
        self.schedule = schedule
        self.count = count
        self.at_least = at_least
        self.strategy = strategy
        self.rounding: Rounding = rounding

    def draw_noise(self, x_0: Tensor, rng: Rng, guide: Guide | None = None) -> Tensor:
        """(B, L) scores, the lowest masked first; `guide` for a strategy that requires scores of the network.

        Raises:
            ValueError: rows of another length than the layout's.
        """
        grids, places = self._grids(x_0.shape[1])
        parts = []
        for grid, place in zip(grids, places, strict=True):
            own = guide if guide is None else Guide(guide.scores[:, place], guide.progress)
            scores = self.strategy.scores(len(x_0), grid, rng, own).to(x_0.device)
            is_plain = self.count == "exact" or self.strategy.is_independent
            parts.append(scores if is_plain else spread_evenly(scores, rng))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 (B, L) or (B, L, D) with [MASK] where masked.

        Args:
            x_0: clean tokens.
            t: (B,), or (B, S) for S streams; with count `bernoulli` also (B, L).
            noise: (B, L) of `draw_noise`.
        """
        ratio = self.schedule.mask_ratio(t.double())
        is_exact = self.count == "exact"
        is_masked = self._exact(noise, ratio) if is_exact else noise < self._over_row(ratio)
        least = min(max(self.at_least, int(is_exact)), noise.shape[1])
        if least and not (is_exact and self._n_streams == 1):
            some = first(noise.masked_fill(is_masked, -torch.inf), least)
            is_masked = torch.where(is_masked.sum(1, keepdim=True) < least, some, is_masked)
        return put_masks(x_0, is_masked, self.mask_id)

    def n_masked(self, length: int) -> int | None:
        """How many of L tokens are masked in every row; None where rows differ."""
        if self.count == "bernoulli" or not isinstance(self.schedule, Fixed):
            return None
        ratio = self.schedule.mask_ratio(torch.zeros((), dtype=torch.float64, device="cpu"))
        n = sum(int(self._rounded(ratio * (place.stop - place.start))) for place in self._grids(length)[1])
        return min(max(n, self.at_least, 1), length)

    @property
    def _n_streams(self) -> int:
        return len(self.layout.streams) if isinstance(self.layout, TokenLayout) else 1

    def _exact(self, noise: Tensor, ratio: Tensor) -> Tensor:
        """(B, L) bool, the lowest of each stream; ratio (B,) or (B, S)."""
        ratio = ratio if ratio.ndim == 2 else ratio[:, None]
        length = noise.shape[1]
        if self._n_streams == 1:
            least = min(max(self.at_least, 1), length)
            return first(noise, self._rounded(ratio * length).clamp(least, length))
        assert isinstance(self.layout, TokenLayout)
        parts = []
        for index, place in enumerate(self.layout.places):
            own = ratio[:, index : index + 1] if ratio.shape[1] > 1 else ratio
            parts.append(first(noise[:, place], self._rounded(own * (place.stop - place.start))))
        return torch.cat(parts, 1)

    def _rounded(self, n: Tensor) -> Tensor:
        """Whole numbers; products that are whole but for the last bits stay what they are."""
        if self.rounding == "round":
            return n.round()
        return (n - 1e-9).ceil() if self.rounding == "ceil" else (n + 1e-9).floor()

    def _over_row(self, ratio: Tensor) -> Tensor:
        """(B,), (B, S) or (B, L) -> (B, 1) or (B, L)."""
        if isinstance(self.layout, TokenLayout) and ratio.ndim == 2 and ratio.shape[1] == self._n_streams:
            return self.layout.over_row(ratio)
        return ratio[:, None] if ratio.ndim == 1 else ratio

    def _grids(self, length: int) -> tuple[list[tuple[int, ...]], list[slice]]:
        """Grid and place of each stream in rows of L tokens; a text (L,) may have any length."""
        if isinstance(self.layout, int) or (self._n_streams == 1 and len(self.layout.shape) == 1):
            return [(length,)], [slice(0, length)]
        if self.layout.length != length:
            grids = ", ".join(f"{stream.name} {stream.shape}" for stream in self.layout.streams)
            raise ValueError(
                f"the process was built for rows of {self.layout.length} tokens ({grids}), got {length}; build it for "
                "the layout of these rows"
            )
        return [stream.shape for stream in self.layout.streams], list(self.layout.places)


@PROCESSES.register("state_dependent")
class StateDependent(Masking):
    """Tokens become [MASK] with chance t^w, w an exponent of each token (GenMD4, arXiv 2406.04329, section 6).

    The exponents are learned, so the network has them and they are an argument here; without, all are 1.

    Args:
        layout: of the rows, one stream; or its vocabulary size V. The mask id is V.
        t_min: least time that is trained; the loss below it has a closed form.
    """

    def __init__(self, layout: TokenLayout | int, t_min: float = 1e-3) -> None:
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), got {t_min}")
        require_one_stream(layout, "process state_dependent")
        self.layout, self.mask_id = layout, vocab_size_of(layout)
        self.t_min = t_min

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor, exponents: Tensor | None = None) -> Tensor:
        """(B, L) int64 with `mask_id` where masked; `exponents` (V,)."""
        own = torch.ones_like(noise) if exponents is None else exponents[x_0].double()
        return torch.where(noise < t.double()[:, None] ** own, self.mask_id, x_0)
