"""How likely a text or an image is under a model: per-row estimates in nats, and what they come to over a corpus.

A masked model has no likelihood that can be computed, only a bound: its estimates are upper bounds on -log p(x) in
expectation over the masks. Autoregressive models, and block diffusion with blocks of one token, are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from maskgen.core.devices import device_of
from maskgen.core.predictions import Condition, Denoiser
from maskgen.core.rng import Rng
from maskgen.core.traits import network_of, traits_of
from maskgen.evaluation.metrics.bounds import count_bound, exact_nll, state_dependent_bound
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.evaluation.report import Entry
from maskgen.schedules import Linear, Schedule

LN_2 = math.log(2)


@dataclass(frozen=True)
class RowNll:
    """-log p of each row, or an estimate of an upper bound on it.

    Attributes:
        nats: (B,) float64, summed over the row's tokens.
        is_bound: whether `nats` estimates a bound, and not the value itself.
        variance: (B,) float64, of `nats` over masks, unbiased; zero if nothing is drawn, None if not known.
    """

    nats: Tensor
    is_bound: bool
    variance: Tensor | None


@dataclass(frozen=True)
class Likelihood:
    """What a corpus costs under a model.

    Attributes:
        nats: of the whole corpus.
        n_tokens: scored tokens, all of them.
        n_rows: sequences they came in.
        is_bound: whether `nats` is an upper bound.
        standard_error: of nats a token, seen as a ratio of two sums over rows. It covers which rows were drawn and the
            noise of the masks, taking rows as independent: rows of one document are not quite, and then it is too low.
            None for a single row, and where a token has likelihood 0.
        monte_carlo_error: the part of it that more strata would lower: the noise of the masks, rows held fixed. None
            if it is not known.
        n_characters, n_bytes, n_dims: of what the scored tokens stand for; `dataclasses.replace` puts them in.
    """

    nats: float
    n_tokens: int
    n_rows: int
    is_bound: bool
    standard_error: float | None = None
    monte_carlo_error: float | None = None
    n_characters: int | None = None
    n_bytes: int | None = None
    n_dims: int | None = None

    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    def bits_per_token(self) -> float:
        return self.nats_per_token() / LN_2

    def perplexity(self) -> float:
        """exp of the nats a token; infinite where a float64 can't hold it."""
        return math.exp(self.nats_per_token()) if self.nats_per_token() < 709 else math.inf

    def bits_per_char(self) -> float:
        return self._bits_per("n_characters", self.n_characters)

    def bits_per_byte(self) -> float:
        """Bits a byte of UTF-8: compares models of different tokenizers."""
        return self._bits_per("n_bytes", self.n_bytes)

    def bits_per_dim(self) -> float:
        """Bits a sub-pixel."""
        return self._bits_per("n_dims", self.n_dims)

    def entries(self, of: str) -> list[Entry]:
        """All of it for a report; the name ends in `[bound]` or `[exact]`, and `n_samples` counts scored tokens."""
        kind = "bound" if self.is_bound else "exact"
        per_token = {"bits_per_token": 1 / LN_2, "perplexity": self.perplexity()}
        sizes = {"bits_per_char": self.n_characters, "bits_per_byte": self.n_bytes, "bits_per_dim": self.n_dims}
        per_token |= {name: self.n_tokens / size / LN_2 for name, size in sizes.items() if size is not None}
        found = [
            Entry(f"{name}[{kind}]", of, getattr(self, name)(), self.n_tokens, standard_error=self._error(slope))
            for name, slope in per_token.items()  # d value / d (nats a token)
        ]
        if self.monte_carlo_error:
            error = self.monte_carlo_error / LN_2
            found.append(Entry("monte_carlo_error[bits_per_token]", of, error, self.n_tokens))
        return found

    def _bits_per(self, name: str, size: int | None) -> float:
        if size is None:
            raise ValueError(f"{name} of the corpus is unknown; set it by dataclasses.replace(likelihood, {name}=...)")
        return self.nats / LN_2 / size

    def _error(self, slope: float) -> float | None:
        return None if self.standard_error is None else _finite(slope * self.standard_error)


def corpus_likelihood(
    model: Denoiser,
    batches: Iterable[Tensor | tuple[Tensor, Condition]],
    rng: Rng,
    *,
    mask_id: int,
    strata: int = 8,
    schedule: Schedule = Linear(),
    eos: int | None = None,
) -> Likelihood:
    """Every row of every batch scored by `row_nll`, each with a stream of its own: batching does not matter.

    Args:
        model: a denoiser in evaluation mode, of a kind that `row_nll` supports.
        batches: x_0 (B, L) int64, or a pair of it and its condition; L may differ, as that of the short row at the
            end of a text does.
        rng: one stream.
        mask_id: V.
        strata: forward passes a row, 1 or even; autoregressive models always use one.
        schedule: of the times given to a time-conditioned model.
        eos: the token that ends a document, for a model trained with document attention.

    Raises:
        ValueError: no tokens, a model in training mode, or strata neither 1 nor even.
    """
    total = _Total()
    for batch in batches:
        x_0, cond = (batch, None) if isinstance(batch, Tensor) else batch
        if x_0.numel():
            rows = Rng.per_sample([int(seed * 2**53) for seed in rng.uniform((len(x_0),)).tolist()])
            total.update(row_nll(model, x_0, rows, strata, schedule, cond, mask_id=mask_id, eos=eos), x_0.shape[1])
    return total.likelihood()


def answer_likelihood(
    model: Denoiser,
    rows: Iterable[tuple[Tensor, Tensor]],
    rng: Rng,
    draws: int,
    schedule: Schedule = Linear(),
    *,
    mask_id: int,
) -> Likelihood:
    """Answers given their prompts, as `answer_nll` scores each; tokens of prompts are not counted.

    Args:
        model, rng, draws, schedule, mask_id: see `answer_nll`.
        rows: tokens (P,) of a prompt and (n,) of its answer.

    Raises:
        ValueError: no rows, or see `answer_nll`.
    """
    total = _Total()
    for index, (prompt, answer) in enumerate(rows):
        found = answer_nll(model, prompt, answer, rng.fork("answer", index), draws, schedule, mask_id=mask_id)
        nats = torch.tensor([found.nats], dtype=torch.float64)
        variance = None if found.error is None else torch.tensor([found.error**2], dtype=torch.float64)
        total.update(RowNll(nats, found.is_bound, variance), len(answer))
    return total.likelihood()


@torch.no_grad()
def row_nll(
    model: Denoiser,
    x_0: Tensor,
    rng: Rng,
    strata: int,
    schedule: Schedule = Linear(),
    cond: Condition | None = None,
    *,
    mask_id: int,
    eos: int | None = None,
) -> RowNll:
    """Rows x_0 (B, L) scored by what suits the model, on its device, in float32 with sums in float64.

    `is_autoregressive` or `groups`: exactly. `exponents`: `state_dependent_bound`. All others: `count_bound`, with
    `block_length` by blocks, which is exact for blocks of one token.

    Masks are drawn in two independent halves of strata/2 strata; with a and b the halves' means, (a - b)^2 / 4 is
    an unbiased estimate of the variance of (a + b) / 2. A single stratum leaves the variance unknown.

    Raises:
        ValueError: strata neither 1 nor even, or a model in training mode, whose dropout would be scored.
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("a model in training mode scores its own dropout; call model.eval() first")
    if strata != 1 and (strata < 2 or strata % 2):
        raise ValueError(f"strata must be 1 or even, got {strata}: the error comes from two independent halves")
    device = device_of(model, x_0.device)
    x_0, cond = x_0.to(device), None if cond is None else Condition(cond.labels.to(device))
    columns = partial(_columns, model, x_0, rng, schedule, cond, mask_id, eos)
    with torch.autocast(device.type, enabled=False):
        if is_exact(model):
            traits = traits_of(model)
            is_causal = traits.is_autoregressive or traits.groups is not None
            nats = exact_nll(model, x_0, cond) if is_causal else columns(1)[:, 0]
            return RowNll(nats, False, torch.zeros_like(nats))
        halves = [columns(max(strata // 2, 1)).mean(1) for _ in range(min(strata, 2))]
    variance = (halves[0] - halves[1]).square() / 4 if len(halves) == 2 else None
    return RowNll(torch.stack(halves).mean(0), True, variance)


def _columns(
    model: Denoiser,
    x_0: Tensor,
    rng: Rng,
    schedule: Schedule,
    cond: Condition | None,
    mask_id: int,
    eos: int | None,
    strata: int,
) -> Tensor:
    """(B, strata) of the bound that suits the model."""
    if not traits_of(model).has_exponents:
        return count_bound(model, x_0, rng, strata, schedule, cond, mask_id=mask_id, eos=eos)
    return state_dependent_bound(model, network_of(model).exponents, x_0, rng, strata, cond=cond, mask_id=mask_id)


def is_exact(model: object) -> bool:
    """Whether `row_nll` gives -log p itself, and not a bound."""
    traits = traits_of(model)
    return traits.is_autoregressive or traits.block_length == 1 or traits.groups is not None


class _Total:
    """Rows taken in batch by batch, and what they come to."""

    def __init__(self) -> None:
        self.nats: list[float] = []
        self.lengths: list[int] = []
        self.variance: float | None = 0.0
        self.is_bound = False

    def update(self, rows: RowNll, length: int) -> None:
        self.nats += rows.nats.tolist()
        self.lengths += [length] * len(rows.nats)
        self.is_bound |= rows.is_bound
        if self.variance is not None:
            self.variance = None if rows.variance is None else self.variance + float(rows.variance.sum())

    def likelihood(self) -> Likelihood:
        if not self.nats:
            raise ValueError("there are no tokens to score")
        nats, lengths = torch.tensor(self.nats, dtype=torch.float64), torch.tensor(self.lengths)
        n_rows, n_tokens = len(nats), int(lengths.sum())
        squares = (nats - nats.sum() / n_tokens * lengths).square().sum()
        error = float((squares * n_rows / (n_rows - 1)).sqrt()) / n_tokens if n_rows > 1 else None
        noise = None if self.variance is None else math.sqrt(self.variance) / n_tokens
        return Likelihood(
            nats=float(nats.sum()),
            n_tokens=n_tokens,
            n_rows=n_rows,
            is_bound=self.is_bound,
            standard_error=_finite(error),
            monte_carlo_error=_finite(noise),
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
