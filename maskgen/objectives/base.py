"""Base class of training objectives, the times they are evaluated at, and what they log."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.devices import mean_over_ranks
from maskgen.core.predictions import Batch, Condition, Loss
from maskgen.core.registry import Registry
from maskgen.core.rng import Rng
from maskgen.core.traits import is_in_training
from maskgen.objectives.contrastive import Contrastive
from maskgen.processes import Absorbing, Gaussian
from maskgen.schedules import Fixed, Schedule
from maskgen.strategies import MaskStrategy

ProcessKind = Literal["masking", "gaussian", "none"]
"""The process an objective takes; `none` for one that corrupts nothing, or by itself."""

InputKind = Literal["discrete", "continuous", "images"]
"""What an objective is trained on: token ids (B, L), token vectors (B, L, D), or images (B, C, H, W)."""


@dataclass(frozen=True)
class ObjectiveTraits:
    """What an objective is for.

    Attributes:
        process: kind of process it takes.
        inputs: kind of its x_0.
        drops_tokens: whether it accepts a keep_ratio below 1.
        has_streams: whether rows of several streams are supported.
        takes_documents: whether documents packed into a row can be kept from attending to each other.
        takes_answers: whether prompts can be left unmasked, so that answers alone are learned.
        learns_exponents: whether it trains masking rates of tokens, the network's `exponents`.
    """

    process: ProcessKind
    inputs: InputKind
    drops_tokens: bool = False
    has_streams: bool = False
    takes_documents: bool = False
    takes_answers: bool = False
    learns_exponents: bool = False


class Objective(ABC):
    """A training loss. Every log is (2,): a sum and its count, so that means stay exact over steps and ranks.

    One that uses the training progress has a keyword argument `progress` too, the share of the steps that are done.

    Attributes:
        traits: what it is for.
        baseline: loss of a uniform prediction; None where there is none.
        label_dropout: share of rows trained without condition; 0 where the objective has no such key.
        strategy: mask strategy; None for one that masks otherwise or not at all.
        contrastive: contrastive term on two views; None without.
        makes_tokens: whether predictions are tokens, so that samples can be made of them.
        state: tensors beside those of the network (a teacher's weights), stored in checkpoints; None without.
        checkpoint: of a network or tokenizer that the loss is computed with; empty for none.
        copies_network: its state is a copy of the whole network.
    """

    traits: ClassVar[ObjectiveTraits]
    baseline: float | None = None
    label_dropout: float = 0.0
    strategy: MaskStrategy | None = None
    contrastive: Contrastive | None = None
    makes_tokens: bool = True
    state: nn.Module | None = None
    checkpoint: str = ""
    copies_network: bool = False

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """Loss of a batch; `keep_ratio` is the share of the tokens that the network computes."""

    def target_width(self, source: nn.Module | None) -> int:  # noqa: ARG002
        """Numbers that the network predicts per token: 0 for those of a token, -1 for the width of its features.

        Args:
            source: what `checkpoint` names; None if it is not loaded.
        """
        return 0

    def attach(self, network: nn.Module, source: nn.Module | None) -> None:  # noqa: B027
        """Make `state`, before the first step.

        Args:
            network: that is trained, with its first weights.
            source: what `checkpoint` names; None if it is not loaded, outside of training.

        Raises:
            ValueError: the source does not fit.
        """

    def check(self, context: CheckContext) -> None:  # noqa: B027 - most objectives have nothing to check
        """Check the other parts of a recipe.

        Raises:
            ValueError: the objective does not work with one of them; the message begins with a key.
        """


OBJECTIVES: Registry[Objective] = Registry(
    "objective", derived=("process", "layout"), home="maskgen.objectives:OBJECTIVES"
)


def traits_of_objective(name: str) -> ObjectiveTraits:
    """The traits of a registered objective."""
    return cast(type[Objective], OBJECTIVES.get(name)).traits


RatioPer = Literal["sample", "batch"]
"""What has a mask ratio of its own: each row, or a whole batch, in all processes alike (MAGE's and MAR's code)."""


def draw_times(n: int, rng: Rng, device: torch.device, per: RatioPer = "sample") -> Tensor:
    """(n,) float64 times in (0, 1], one in each of n equal strata, strata permuted over the rows; or one for all.

    Low-discrepancy times lower the variance of the loss (variational diffusion models, appendix I.1). The permutation
    makes each time uniform by itself; strata tied to rows would not.
    """
    if per == "batch":
        return 1 - rng.whole.uniform((1,), device=device).expand(n)
    first, total = rng.place(n)  # strata of the whole batch, of which this process computes a part
    strata = rng.whole.permutation(1, total, device=device)[0, first : first + n]
    return (strata + 1 - rng.uniform((n,), device=device)) / total


class NoiseTimes:
    """Times of a Gaussian process's objective: a draw is (n,) float64 within the range the network is defined on.

    Discrete ones are 1/T ... 1. Where no signal is left at t = 1, x_0 does not follow from eps, so t stays below.
    """

    def __init__(self, process: Gaussian) -> None:
        self.steps = process.steps
        self.last = 1 - 1e-7 if process.ends_in_noise else 1.0

    def __call__(self, n: int, rng: Rng, device: torch.device) -> Tensor:
        return self.nearest(draw_times(n, rng, device))

    def nearest(self, t: Tensor) -> Tensor:
        """Discretise t in (0, 1], of any shape, to the steps of the process; clamped for continuous time."""
        return ((t * self.steps).ceil() / self.steps).clamp(max=self.last) if self.steps else t.clamp(1e-5, 1 - 1e-7)


def require_shares(**shares: float) -> None:
    """Check that each value is a share below 1.

    Raises:
        ValueError: one is outside [0, 1).
    """
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def dropped(cond: Condition | None, share: float, model: object, rng: Rng) -> Condition | None:
    """The condition with a share of its rows replaced by null; unchanged for a model in evaluation mode."""
    if cond is None or not share or not is_in_training(model):
        return cond
    return cond.drop(share, rng)


def refuse_dropping(keep_ratio: float) -> None:
    """Check the keep ratio of an objective that computes all tokens.

    Raises:
        ValueError: keep_ratio below 1.
    """
    if keep_ratio < 1:
        names = " and ".join(name for name in OBJECTIVES.names() if traits_of_objective(name).drops_tokens)
        raise ValueError(f"only objectives {names} drop tokens; use keep_ratio 1, got {keep_ratio}")


def require_bound(process: Absorbing, weight: str) -> None:
    """Check that weight `elbo` gives a bound.

    With exact counts some token is masked even as t goes to 0, where the weight diverges: the expectation is infinite.
    A token masked at t = 0, or visible at t = 1, has no cost: a uniform prediction would cost less than log V.

    Raises:
        ValueError: it does not.
    """
    if weight == "elbo" and process.count == "exact":
        raise ValueError("weight elbo needs a process with count bernoulli, got exact; use that, or weight uniform")
    if weight == "elbo" and process.at_least:
        raise ValueError(f"weight elbo needs a process with at_least 0, got {process.at_least}; or use weight uniform")
    if weight == "elbo" and isinstance(process.schedule, Fixed):
        raise ValueError(
            "weight elbo of schedule fixed is 0 at all times; use weight uniform, or another schedule (linear, cosine)"
        )
    if weight == "elbo":
        require_path(process.schedule, "weight elbo")
    if weight == "elbo" and not process.strategy.is_independent:
        raise ValueError("weight elbo needs tokens masked independently: strategy random; or take weight uniform")


def require_path(schedule: Schedule, what: str) -> None:
    """Check that alpha of a schedule goes from 1 to 0, so that every token has a cost; `betas` ends near enough.

    Raises:
        ValueError: it begins below 1 or ends above 0.
    """
    first, last = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")).tolist()
    if first < 1 - 1e-6 or last > 1e-4:
        raise ValueError(
            f"{what} needs a schedule from alpha 1 to 0 (linear or cosine), or its sum is no bound; this one goes "
            f"from {first:.4g} to {last:.4g}"
        )


def mean_of(value: Tensor) -> Tensor:
    """The log of a scalar: its value and the count 1."""
    return torch.stack([value.detach(), torch.ones_like(value)])


def sum_of(values: Tensor) -> Tensor:
    """The log of many values: their sum and their count."""
    return torch.stack([values.detach().sum(), values.new_tensor(float(values.numel()))])


def number_of(values: Tensor, is_training: bool) -> Tensor:
    """Number of values (N,) that a mean is over, at least 1: in training the mean over processes, for equal weights.

    In validation processes have different numbers of batches, so nothing is exchanged there.
    """
    n = torch.tensor(float(len(values)), device=values.device)
    return (mean_over_ranks(n) if is_training else n).clamp(min=1)


BUCKETS = 4
"""Number of bins of the logs by mask ratio or noise level."""


def by_quarter(name: str, values: Tensor, share: Tensor, of: str) -> dict[str, Tensor]:
    """The logs of values (N,) by the quarter of (0, 1] that their share (N,) lies in."""
    bucket = (share * BUCKETS).ceil().long().clamp(1, BUCKETS) - 1
    sums = torch.zeros(BUCKETS, device=values.device).index_add_(0, bucket, values)
    counts = torch.zeros_like(sums).index_add_(0, bucket, torch.ones_like(values))
    ends = [100 * index // BUCKETS for index in range(BUCKETS + 1)]
    return {
        f"{name}/{of} {ends[index]}-{ends[index + 1]}%": torch.stack([sums[index], counts[index]])
        for index in range(BUCKETS)
    }


def takes_progress(objective: Objective) -> bool:
    """Whether an objective uses the share of the training steps that are done."""
    return "progress" in inspect.signature(objective).parameters
