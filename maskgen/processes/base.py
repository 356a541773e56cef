"""What a forward process is: how data turns into noise. Pure functions of (x_0, t, noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.core.rng import Rng


class Process(ABC):
    """Turns x_0 into x_t; t = 0 is data, t = 1 nothing left."""

    @abstractmethod
    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """The randomness `corrupt` needs, of the shape of `x_0`."""

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of the shape of `x_0`, with t (B,)."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:
        """x_1, from which sampling starts."""


PROCESSES: Registry[Process] = Registry(
    "process", Process, derived=("vocab_size", "grid"), home="maskgen.processes:PROCESSES"
)
