"""Processes that turn tokens into [MASK]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskgen.processes.base import PROCESSES, Process
from maskgen.rng import Rng
from maskgen.schedules import Cosine, Schedule


class Masking(Process):
    """What turns tokens into [MASK]; `mask_id` is V."""

    mask_id: int

    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """(B, L) float64 uniform."""
        return rng.uniform(x_0.shape, device=x_0.device)

    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:  # noqa: ARG002
        """All [MASK]."""
        return torch.full(shape, self.mask_id, dtype=torch.long, device=device)


@PROCESSES.register("absorbing")
class Absorbing(Masking):
    """Tokens become [MASK] with chance 1 - alpha(t) (absorbing-state diffusion; MaskGIT's masking).

    Args:
        vocab_size: V; the mask id is V.
        schedule: alpha(t).
        count: `bernoulli`, every token by itself (MD4, MDLM); or `exact`, clamp(round(L * ratio), 1, L) tokens by
            random permutation (MaskGIT).
    """

    def __init__(
        self, vocab_size: int, schedule: Schedule = Cosine(), count: Literal["bernoulli", "exact"] = "exact"
    ) -> None:
        self.mask_id = vocab_size
        self.schedule = schedule
        self.count = count

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(B, L) int64 with `mask_id` where masked; with count `bernoulli`, t may be (B, L)."""
        ratio = self.schedule.mask_ratio(t.double())
        ratio = ratio[:, None] if ratio.ndim == 1 else ratio
        if self.count == "bernoulli":
            is_masked = noise < ratio
        else:
            length = x_0.shape[1]
            # Ranks, not a threshold on the noise: the count is exact even where noise is tied.
            is_masked = noise.argsort(dim=1, stable=True).argsort(1) < (ratio * length).round().clamp(1, length)
        return torch.where(is_masked, self.mask_id, x_0)


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
