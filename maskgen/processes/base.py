"""Base class of forward processes: how data turns into noise. Pure functions of (x_0, t, noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.core.rng import Rng
from maskgen.strategies import MaskStrategy


class Process(ABC):
    """Turns x_0 into x_t; t = 0 is data, t = 1 carries no information.

    Attributes:
        is_field: networks predict the field of a continuous process, which a solver follows; if not, tokens are masked.
        default_sampler: of recipes that give none.
        strategy: the mask strategy, None for a process that has none.
    """

    is_field: ClassVar[bool] = False
    default_sampler: ClassVar[str] = "maskgit"
    strategy: MaskStrategy | None = None

    @abstractmethod
    def draw_noise(self, x_0: Tensor, rng: Rng) -> Tensor:
        """The random numbers that `corrupt` needs for x_0."""

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of the shape of `x_0`, with t (B,)."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str = "cpu") -> Tensor:
        """x_1, from which sampling starts."""


PROCESSES: Registry[Process] = Registry("process", Process, derived=("layout",), home="maskgen.processes:PROCESSES")
