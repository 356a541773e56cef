"""Remasking: revealed tokens that a step masks again (ReMDM, arXiv 2503.00307)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.registry import Registry
from maskgen.schedules import Schedule


class Remask(ABC):
    """The chance sigma that a revealed token is masked again; counts compensate it, so marginals are unchanged.

    With `needs_confidence` the loop stores the probability that each token had when it was revealed. With `is_planned`
    there is no chance: the order ranks masked and revealed tokens together, and those ranked last are masked.
    """

    is_off: ClassVar[bool] = False
    is_planned: ClassVar[bool] = False
    needs_confidence: ClassVar[bool] = False

    @abstractmethod
    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """(B,) chance that the count of a step t -> s compensates, at most min(1, (1 - alpha_s) / alpha_t)."""

    def chances(self, alpha_t: Tensor, alpha_s: Tensor, is_revealed: Tensor, confidence: Tensor) -> Tensor:
        """(B, L) float64, the chance of each token; values at positions that are not revealed are ignored.

        Args:
            alpha_t: (B,) float64 before the step.
            alpha_s: (B,) after it.
            is_revealed: (B, L) bool, tokens that may be masked again.
            confidence: (B, L) float64, probability of each when it was revealed; only with `needs_confidence`.
        """
        return self.sigma(alpha_t, alpha_s).to(confidence)[:, None].expand(is_revealed.shape)


REMASKS: Registry[Remask] = Registry("remask", Remask, home="maskgen.samplers.masked:REMASKS")


def _largest(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    return torch.where(alpha_t > 0, (1 - alpha_s) / alpha_t.clamp(min=1e-12), 1.0).clamp(0, 1)


@REMASKS.register("none")
@dataclass(frozen=True)
class NoRemask(Remask):
    """Revealed tokens stay: MaskGIT, MD4, MDLM."""

    is_off: ClassVar[bool] = True

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


@REMASKS.register("confidence")
@dataclass(frozen=True)
class LowConfidence(Remask):
    """sigma = eta * largest with eta = softmax(-confidence) over a row's revealed tokens: ReMDM-conf.

    Masked tokens have sigma = 0, so counts compensate nothing.
    """

    needs_confidence: ClassVar[bool] = True

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(alpha_t)

    def chances(self, alpha_t: Tensor, alpha_s: Tensor, is_revealed: Tensor, confidence: Tensor) -> Tensor:
        eta = torch.softmax((-confidence).masked_fill(~is_revealed, -torch.inf), 1)
        return eta.nan_to_num(0) * _largest(alpha_t, alpha_s).to(eta)[:, None]  # nan: a row with nothing revealed


@REMASKS.register("loop")
@dataclass(frozen=True)
class Loop(Remask):
    """sigma = min(eta, largest) while alpha is constant, 0 while it rises: ReMDM-loop, with the schedule `Held`."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        is_held = (alpha_s - alpha_t).abs() < 1e-9
        return torch.where(is_held, _largest(alpha_t, alpha_s).clamp(max=self.eta), 0.0)


@REMASKS.register("planned")
@dataclass(frozen=True)
class Planned(Remask):
    """Masked and revealed tokens compete for the places that the count leaves: path planning (P2, arXiv 2502.03540).

    The order scores both, on the scale of log-probabilities, a revealed token by what the network predicts at its
    place. With order `confidence` that is self-planning, with `random` random planning.

    Args:
        eta: scores of revealed tokens, at most 0, are multiplied by it, and those above 0, with noise, divided: 0 masks
            none again, 1 treats both alike, more masks more of them again.
    """

    is_planned: ClassVar[bool] = True

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta must be at least 0 and finite, got {self.eta}")

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(alpha_t)

    def weighted(self, score: Tensor, is_masked: Tensor) -> Tensor:
        """Scores (B, L) with those of revealed tokens weighted; of eta 0 above all others, -inf stays -inf."""
        revealed = torch.where(score > 0, score / self.eta, score * self.eta) if self.eta else torch.inf
        return torch.where(is_masked | score.isneginf(), score, revealed)


@dataclass(frozen=True)
class Held(Schedule):
    """alpha rises to alpha_on until t_on, is constant until t_off, then rises to 1 (ReMDM-loop).

    Linear in all three parts.
    """

    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.t_off <= self.t_on < 1:
            raise ValueError(f"need 0 < t_off <= t_on < 1, got t_off {self.t_off} and t_on {self.t_on}")
        if not 0 < self.alpha_on < 1:
            raise ValueError(f"alpha_on must be in (0, 1), got {self.alpha_on}")

    def alpha(self, t: Tensor) -> Tensor:
        before = (1 - t) * self.alpha_on / (1 - self.t_on)
        after = 1 - t * (1 - self.alpha_on) / self.t_off
        return torch.where(t > self.t_on, before, after.clamp(min=self.alpha_on))

    def alpha_dot(self, t: Tensor) -> Tensor:
        before = torch.full_like(t, -self.alpha_on / (1 - self.t_on))
        after = torch.where(t <= self.t_off, -(1 - self.alpha_on) / self.t_off, 0.0)
        return torch.where(t > self.t_on, before, after)

    def inverse(self, alpha: Tensor) -> Tensor:
        """The largest t with this alpha: `t_on` for `alpha_on`."""
        before = 1 - alpha * (1 - self.t_on) / self.alpha_on
        return torch.where(alpha <= self.alpha_on, before, (1 - alpha) * self.t_off / (1 - self.alpha_on))


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
