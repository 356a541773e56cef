"""What a denoiser is given and what it answers: the types every other part speaks in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng

if TYPE_CHECKING:
    from maskgen.core.subset import TokenSubset

NULL = -1
"""The label that stands for "no condition"; a model maps it to its null embedding."""

P = TypeVar("P")


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on.

    Attributes:
        labels: (B,) int64, `NULL` where there is none.
        captions: (B, S, C) float, embedded captions of S tokens; None for a network that takes none. The null
            caption is all zeros (MicroDiT, arXiv 2407.15811).
        visible: (B, L, D) float, clean tokens with NaN where one is to be made; None for a network that does not look
            at them (DiffMAE does, arXiv 2304.03283). They belong to the null condition too.
    """

    labels: Tensor
    captions: Tensor | None = None
    visible: Tensor | None = None

    def null(self) -> Condition:
        """The same rows without condition, what is visible left."""
        captions = None if self.captions is None else torch.zeros_like(self.captions)
        return Condition(torch.full_like(self.labels, NULL), captions, self.visible)

    def drop(self, probability: float, rng: Rng) -> Condition:
        """Each row's condition replaced by null with this probability (training of guidance)."""
        is_dropped = rng.uniform(self.labels.shape, device=self.labels.device) < probability
        captions = None if self.captions is None else self.captions.masked_fill(is_dropped[:, None, None], 0)
        return Condition(self.labels.masked_fill(is_dropped, NULL), captions, self.visible)

    def join(self, other: Condition) -> Condition:
        """The rows of both, one after the other."""
        captions, visible = (
            None if one is None or two is None else torch.cat([one, two])
            for one, two in ((self.captions, other.captions), (self.visible, other.visible))
        )
        return Condition(torch.cat([self.labels, other.labels]), captions, visible)

    def rows(self, index: Tensor) -> Condition:
        """The rows an index or a (B,) bool picks."""
        captions, visible = (None if part is None else part[index] for part in (self.captions, self.visible))
        return Condition(self.labels[index], captions, visible)


@dataclass(frozen=True)
class Batch:
    """`x_0`: tokens (B, L) int64 or (B, L, D) float, or images (B, C, H, W) float in [0, 1]; `cond`: their condition.

    `documents` (B, L) int64: which document of a packed row each token is of; None where tokens may see all others.
    `view` (B, L) int64: tokens of another view of each image, for a contrastive term; None without one.
    """

    x_0: Tensor
    cond: Condition | None = None
    documents: Tensor | None = None
    view: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """`value`: scalar to minimise; `logs`: detached (2,) tensors to report, each a sum and its count."""

    value: Tensor
    logs: Mapping[str, Tensor]


@runtime_checkable
class Prediction(Protocol):
    """A distribution over the tokens at the positions that were asked for.

    With `where` (B, L) bool, a prediction holds those M positions only, packed in row order (M, ...). One of vectors is
    asked for samples only; one of numbers, `Categorical`, for probabilities too.
    """

    @property
    def where(self) -> Tensor | None: ...

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor: ...


class Denoiser(Protocol):
    """A network, a wrapper around one, or a two-line test function."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L), t (B,) -> prediction, of the positions `where` (B, L) bool only if given."""


class FieldDenoiser(Protocol):
    """A Gaussian process's network: continuous tokens x_t (B, L, D) in, a `Field` out."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Field:
        """With `subset`, tokens that are not kept are left out of compute."""


class DenoiseField(Protocol):
    """A field denoiser with condition and guidance bound."""

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        """x_t (B, L, D), t (B,) on the CPU in float64."""


class Denoise(Protocol):
    """A denoiser with condition and guidance bound: all that a sampler sees."""

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Prediction:
        """x_t (B, L), or (B, L, D) with NaN for [MASK]; t (B,) on the CPU in float64."""


@dataclass(frozen=True)
class Categorical:
    """Independent categorical distributions over V tokens.

    `logits` is (B, L, V), or (M, V) for the M positions where `where` (B, L) is True. There is no column for
    [MASK]: it can't be predicted. `difficulty`, of its shape without V, orders positions by the loss that the network
    expects to have there; `vectors` (2, B, P) are of two views of each image, for a contrastive term. Both are None
    from networks and calls that have none.
    """

    logits: Tensor
    where: Tensor | None = None
    difficulty: Tensor | None = None
    vectors: Tensor | None = None

    def guide(self, null: Categorical, scale: Tensor | float) -> Categorical:
        """null + scale (self - null): classifier-free guidance on logits; scale 1 changes nothing.

        `scale` is a number or (B,), one a row.
        """
        if isinstance(scale, Tensor):
            scale = over_positions(scale.to(self.logits), self.where, self.logits.shape[:-1])[..., None]
        # Written from the conditional side, so that scale 1 is exact to the last bit.
        return Categorical(self.logits + (scale - 1) * (self.logits - null.logits), self.where)

    def halves(self) -> tuple[Categorical, Categorical]:
        """The first and the second half of the rows: undoes a pass of two joined batches with equal `where`."""
        first, second = self.logits.chunk(2)
        if self.where is None:
            return Categorical(first), Categorical(second)
        above, below = self.where.chunk(2)
        return Categorical(first, above), Categorical(second, below)

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        """Tokens, (B, L) or (M,) int64; the mode at temperature 0.

        By inverse cumulative distribution in float64: float32 Gumbel noise truncates the tail and lowers the
        temperature unseen (arXiv 2409.02908).
        """
        if temperature == 0:
            return self.logits.argmax(-1)
        # One float64 uniform a position, drawn for all positions: a row's stream does not depend on `where`.
        shape = self.logits.shape[:-1] if self.where is None else self.where.shape
        uniform = rng.uniform(shape, device=self.logits.device)
        if self.where is not None:
            uniform = uniform[self.where]
        cumulative = torch.softmax(self.logits.double() / temperature, -1).cumsum(-1)
        target = uniform[..., None] * cumulative[..., -1:]
        return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=self.logits.shape[-1] - 1)

    def nucleus(self, top_p: float, temperature: float = 1.0) -> Categorical:
        """Only the likeliest tokens that together hold `top_p` at this temperature, the one that crosses it included.

        The others have logit -inf; what is kept keeps its logit (arXiv 1904.09751).
        """
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 = off, got {top_p}")
        if top_p == 1 or temperature == 0:
            return self
        p, order = torch.softmax(self.logits.double() / temperature, -1).sort(stable=True, dim=-1, descending=True)
        is_late = p.cumsum(-1) - p >= top_p
        is_outside = torch.empty_like(is_late).scatter(-1, order, is_late)
        return Categorical(self.logits.masked_fill(is_outside, -torch.inf), self.where)

    def log_probs(self) -> Tensor:
        """Log-probabilities in float32 or wider, shape of `logits`."""
        return F.log_softmax(self.logits.float() if self.logits.dtype.itemsize < 4 else self.logits, -1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability of `tokens`, which has the shape of `logits` without its last dimension."""
        return self.log_probs().gather(-1, tokens[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """Entropy in nats, shape of `logits` without its last dimension."""
        log_probs = self.log_probs()
        return -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(-1)

    def margin(self) -> Tensor:
        """Probability of the first choice minus that of the second."""
        top = self.log_probs().exp().topk(2, -1).values
        return top[..., 0] - top[..., 1]


def over_positions(values: Tensor, where: Tensor | None, shape: torch.Size) -> Tensor:
    """(B,) values of the rows, spread over positions: `shape` (B, L), or (M,) of those where `where` (B, L) is True."""
    if where is None:
        return values[:, None].expand(shape)
    return values[:, None].expand(where.shape)[where]


NO_SPREAD = "temperature: this network answers one value a token, of which nothing is drawn; use 1"


@dataclass(frozen=True)
class Point:
    """One value a token, without spread: what a regression answers (MAE).

    `value` is (B, L, D), or (M, D) for the M positions where `where` (B, L) is True. `difficulty` is that of
    `Categorical`.
    """

    value: Tensor
    where: Tensor | None = None
    difficulty: Tensor | None = None

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:  # noqa: ARG002 - one signature for all predictions
        """The value itself.

        Raises:
            UserError: a temperature other than 1, which there is nothing for.
        """
        if temperature != 1:
            raise UserError(NO_SPREAD)
        return self.value


@dataclass(frozen=True)
class Field:
    """What a network of a Gaussian process answers.

    Attributes:
        value: F (B, L, D), in the units of the process's target; (B, K, D) where it answers for kept tokens only.
        variance: where the reverse step's variance lies between its bounds, 1 is the upper and -1 the lower (learned
            range, arXiv 2102.09672), shape of `value`; None where it is not learned.
        subset: the K kept tokens, None if all are answered for.
    """

    value: Tensor
    variance: Tensor | None = None
    subset: TokenSubset | None = None

    def guide(self, null: Field, scale: Tensor | float) -> Field:
        """null + scale (self - null) on all channels, scale a number or (B,); the variance is the conditional one."""
        if isinstance(scale, Tensor):
            scale = scale.to(self.value)[:, None, None]
        return replace(self, value=self.value + (scale - 1) * (self.value - null.value))

    def halves(self) -> tuple[Field, Field]:
        """The first and the second half of the rows; for fields of all tokens."""
        first, second = self.value.chunk(2)
        if self.variance is None:
            return Field(first), Field(second)
        above, below = self.variance.chunk(2)
        return Field(first, above), Field(second, below)
