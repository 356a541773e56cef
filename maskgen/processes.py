"""Forward processes: how data turns into noise. Pure functions of (x_0, t, noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from maskgen.registry import Registry
from maskgen.rng import Rng
from maskgen.schedules import Cosine, Schedule


class Process(ABC):
    """Turns x_0 into x_t; t = 0 is data, t = 1 nothing left."""

    schedule: Schedule

    @abstractmethod
    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """The randomness `corrupt` needs, of the shape of `x_0`."""

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of the shape of `x_0`, with t (B,)."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:
        """x_1, from which sampling starts."""


PROCESSES: Registry[Process] = Registry("process", Process, derived=("vocab_size",))


@PROCESSES.register("absorbing")
class Absorbing(Process):
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

    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """(B, L) float64 uniform."""
        return rng.uniform(x_0.shape, device=x_0.device)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(B, L) int64 with `mask_id` where masked."""
        ratio = self.schedule.mask_ratio(t.double())[:, None]
        if self.count == "bernoulli":
            is_masked = noise < ratio
        else:
            length = x_0.shape[1]
            # Ranks, not a threshold on the noise: the count is exact even where noise is tied.
            is_masked = noise.argsort(dim=1, stable=True).argsort(1) < (ratio * length).round().clamp(1, length)
        return torch.where(is_masked, self.mask_id, x_0)

    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:  # noqa: ARG002
        """All [MASK]."""
        return torch.full(shape, self.mask_id, dtype=torch.long, device=device)
