"""Orders: which masked tokens are revealed first. The highest score comes first; of equal ones the lower position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.groups import halton_order, roberts_order
from maskgen.core.predictions import Categorical
from maskgen.core.registry import Registry
from maskgen.core.rng import Rng


@dataclass(frozen=True)
class Proposal:
    """The candidates of one step.

    Attributes:
        where: (B, L) bool, the M candidates.
        step, n_steps: index of the step and the number of steps.
        grid: shape of the token grid, (L,) or (h, w).
        prediction: distributions of the candidates, packed; None for an order that does not need them.
        tempered: the same after temperature and nucleus: what tokens are drawn from.
        tokens: (M,) int64, a token drawn for each; None if tokens are decoded after the choice.
    """

    where: Tensor
    step: int
    n_steps: int
    grid: tuple[int, ...]
    prediction: Categorical | None = None
    tempered: Categorical | None = None
    tokens: Tensor | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done after this one, in (0, 1]."""
        return (self.step + 1) / self.n_steps

    def only(self, where: Tensor) -> Proposal:
        """The candidates that are also in `where` (B, L)."""
        inside, kept = where[self.where], self.where & where
        parts = [None if x is None else Categorical(x.logits[inside], kept) for x in (self.prediction, self.tempered)]
        tokens = None if self.tokens is None else self.tokens[inside]
        return replace(self, where=kept, prediction=parts[0], tempered=parts[1], tokens=tokens)

    def spread(self, values: Tensor) -> Tensor:
        """(M,) values of the candidates -> (B, L) float64, -inf elsewhere."""
        whole = torch.full(self.where.shape, -torch.inf, dtype=torch.float64, device=self.where.device)
        whole[self.where] = values.double()
        return whole


class Order(ABC):
    """Scores the candidates.

    Without `needs_prediction` the network is evaluated at the revealed tokens only. With `needs_tokens` the score
    depends on the tokens drawn for the candidates.
    """

    needs_prediction: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    is_tempered: bool = False
    """Whether the prediction is needed after temperature and nucleus."""

    @abstractmethod
    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        """(B, L) float64, -inf where there is no candidate."""

    def log_score(self, proposal: Proposal, rng: Rng) -> Tensor:
        """The score on the scale of log-probabilities, for path planning."""
        return self.score(proposal, rng)


def highest(score: Tensor, n: Tensor) -> Tensor:
    """(B, L) bool, the n (B,) highest of each row; by rank, so that the count is exact under ties."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.lt(n.to(rank.device)[:, None])


ORDERS: Registry[Order] = Registry("order", Order, home="maskgen.samplers.masked:ORDERS")


@ORDERS.register("random")
@dataclass(frozen=True)
class Random(Order):
    """Uniformly random, as in the reverse process (MD4, MDLM)."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        uniform = rng.uniform(proposal.where.shape, device=proposal.where.device)
        return uniform.masked_fill(~proposal.where, -torch.inf)

    def log_score(self, proposal: Proposal, rng: Rng) -> Tensor:
        score = self.score(proposal, rng)
        return torch.where(proposal.where, score.clamp(min=torch.finfo(score.dtype).tiny).log(), score)


@dataclass(frozen=True)
class _ByCertainty(Order):
    """A measure of certainty plus Gumbel noise.

    Constant noise is a draw without replacement from softmax(certainty / choice_temperature) (Dream's `alg_temp`).

    Args:
        choice_temperature: scale of the noise.
        is_fading: the noise is multiplied by 1 - (k + 1) / T in step k of T (MaskGIT), else constant.
        starts_full: fading noise is multiplied by 1 - k / (T - 1) instead, from 1 to 0 (aMUSEd).
        is_tempered: certainty is that of the probabilities after temperature and nucleus (Dream), else before.
    """

    needs_prediction: ClassVar[bool] = True

    choice_temperature: float = 0.0
    is_fading: bool = True
    starts_full: bool = False
    is_tempered: bool = False

    def __post_init__(self) -> None:
        if not self.choice_temperature >= 0:
            raise ValueError(f"choice_temperature must be at least 0, got {self.choice_temperature}")

    @abstractmethod
    def certainty(self, prediction: Categorical, tokens: Tensor | None) -> Tensor:
        """(M,) higher is more certain; tokens are None unless the order `needs_tokens`."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        prediction = proposal.tempered if self.is_tempered else proposal.prediction
        assert prediction is not None
        score = proposal.spread(self.certainty(prediction, proposal.tokens))
        if self.choice_temperature:
            share = self._share(proposal) if self.is_fading else 1
            score += self.choice_temperature * share * rng.gumbel(score.shape, device=score.device)
        return score

    def _share(self, proposal: Proposal) -> float:
        """What is left of fading noise in a step."""
        if self.starts_full:
            return 1 - proposal.step / max(proposal.n_steps - 1, 1)
        return 1 - proposal.progress


@ORDERS.register("confidence")
@dataclass(frozen=True)
class Confidence(_ByCertainty):
    """Log-probability of the drawn token (MaskGIT, section 3.2; MAGE), or its probability (Dream).

    The two differ only with choice noise.
    """

    needs_tokens: ClassVar[bool] = True

    is_log: bool = True

    def certainty(self, prediction: Categorical, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        log_prob = prediction.log_prob(tokens)
        return log_prob if self.is_log else log_prob.exp()


@ORDERS.register("margin")
@dataclass(frozen=True)
class Margin(_ByCertainty):
    """First minus second probability (arXiv 2502.06768)."""

    def certainty(self, prediction: Categorical, tokens: Tensor | None) -> Tensor:  # noqa: ARG002
        return prediction.margin()


@ORDERS.register("entropy")
@dataclass(frozen=True)
class Entropy(_ByCertainty):
    """Lowest entropy of the whole distribution first."""

    def certainty(self, prediction: Categorical, tokens: Tensor | None) -> Tensor:  # noqa: ARG002
        return -prediction.entropy()


class _LowDiscrepancy(Order):
    """A fixed sequence over the grid: tokens revealed together lie far apart."""

    is_rolled: bool = False
    """Whether the sequence of each sample starts at a random position."""

    @abstractmethod
    def sequence(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The flat positions of a grid (h, w) or (L,), first to last."""

    def score(self, proposal: Proposal, rng: Rng) -> Tensor:
        if len(proposal.grid) > 2:
            raise UserError(
                f"this order is defined on grids of one or two dimensions, got {proposal.grid}; use order random"
            )
        n_rows, length = proposal.where.shape
        place = torch.empty(length, dtype=torch.float64)
        place[torch.tensor(self.sequence(proposal.grid))] = torch.arange(length, dtype=torch.float64)
        place = place.expand(n_rows, -1)
        if self.is_rolled:
            # A fork is a pure function of the seed: every step of a sample sees the same start.
            start = (rng.fork("halton").uniform((n_rows, 1)) * length).long()
            place = (place - start) % length
        return (-place).to(proposal.where.device).masked_fill(~proposal.where, -torch.inf)


@ORDERS.register("halton")
@dataclass(frozen=True)
class Halton(_LowDiscrepancy):
    """Halton's sequence (Halton-MaskGIT, arXiv 2503.17076).

    With `is_rolled` the sequence of each sample starts at a random position.
    """

    is_rolled: bool = False

    def sequence(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return halton_order(grid)


@ORDERS.register("qlds")
@dataclass(frozen=True)
class Roberts(_LowDiscrepancy):
    """Roberts' sequence R2 on the grid (QLDS of M2T, arXiv 2304.07313)."""

    def sequence(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return roberts_order(grid)
