"""Remask: tokens already revealed that a step masks again (ReMDM, arXiv 2503.00307)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.registry import Registry


class Remask(ABC):
    """The chance sigma that a revealed token is masked again; quotas make up for it, so marginals stay."""

    is_off = False

    @abstractmethod
    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """(B,) chance for a step t -> s, at most min(1, (1 - alpha_s) / alpha_t)."""


REMASKS: Registry[Remask] = Registry("remask", Remask)


def _largest(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    return torch.where(alpha_t > 0, (1 - alpha_s) / alpha_t.clamp(min=1e-12), 1.0).clamp(0, 1)


@REMASKS.register("none")
@dataclass(frozen=True)
class NoRemask(Remask):
    """Revealed tokens stay: MaskGIT, MD4, MDLM."""

    is_off = True

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(alpha_t)


@REMASKS.register("cap")
@dataclass(frozen=True)
class Cap(Remask):
    """sigma = min(eta, largest): ReMDM-cap."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return _largest(alpha_t, alpha_s).clamp(max=self.eta)


@REMASKS.register("rescale")
@dataclass(frozen=True)
class Rescale(Remask):
    """sigma = eta * largest: ReMDM-rescale."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return self.eta * _largest(alpha_t, alpha_s)


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
