"""Inputs and outputs of a denoiser: conditions, batches, predictions over tokens, losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng

if TYPE_CHECKING:
    from maskgen.core.subset import TokenSubset

NULL = -1
"""The label that stands for "no condition"; a model maps it to its null embedding."""

Crossing = Literal["include", "exclude"]
"""Whether a nucleus includes the token that crosses its share."""


@dataclass(frozen=True)
class Condition:
    """Class labels, captions and known tokens of a batch.

    Attributes:
        labels: (B,) int64, `NULL` for rows without a class.
        captions: (B, S, C) float, embedded captions of S tokens; None for a network without captions. The null
            caption is all zeros (MicroDiT, arXiv 2407.15811).
        visible: (B, L, D) float, clean tokens, NaN at positions to generate; None for a network that does not take
            them (DiffMAE does, arXiv 2304.03283). They are part of the null condition too.
    """

    labels: Tensor
    captions: Tensor | None = None
    visible: Tensor | None = None

    def null(self) -> Condition:
        """The null condition of the same rows; visible tokens are kept."""
        captions = None if self.captions is None else torch.zeros_like(self.captions)
        return Condition(torch.full_like(self.labels, NULL), captions, self.visible)

    def drop(self, probability: float, rng: Rng) -> Condition:
        """Replace each row's condition by null with this probability (training for guidance)."""
        is_dropped = rng.uniform(self.labels.shape, device=self.labels.device) < probability
        captions = None if self.captions is None else self.captions.masked_fill(is_dropped[:, None, None], 0)
        return Condition(self.labels.masked_fill(is_dropped, NULL), captions, self.visible)

    def join(self, other: Condition) -> Condition:
        """Concatenate the rows of both."""
        captions, visible = (
            None if one is None or two is None else torch.cat([one, two])
            for one, two in ((self.captions, other.captions), (self.visible, other.visible))
        )
        return Condition(torch.cat([self.labels, other.labels]), captions, visible)

    def rows(self, index: Tensor) -> Condition:
        """Select rows by an index or a (B,) bool mask."""
        captions, visible = (None if part is None else part[index] for part in (self.captions, self.visible))
        return Condition(self.labels[index], captions, visible)


@dataclass(frozen=True)
class Batch:
    """`x_0`: tokens (B, L) int64 or (B, L, D) float, or images (B, C, H, W) float in [0, 1]; `cond`: their condition.

    `documents` (B, L) int64: document index of each token in a packed row; None for full attention.
    `view` (B, L) int64: tokens of another view of each image, for a contrastive term; None without one.
    `is_answer` (B, L) bool: the tokens that may be masked and are learned; None for all.
    """

    x_0: Tensor
    cond: Condition | None = None
    documents: Tensor | None = None
    view: Tensor | None = None
    is_answer: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """`value`: scalar to minimise; `logs`: detached (2,) tensors to report, each a sum and its count."""

    value: Tensor
    logs: Mapping[str, Tensor]


def labels_of(cond: Condition | None, like: Tensor) -> Tensor:
    """(B,) int64, the classes of the rows `like` (B, ...), on their device; `NULL` without a condition."""
    return torch.full((len(like),), NULL, device=like.device) if cond is None else cond.labels


@runtime_checkable
class Prediction(Protocol):
    """A distribution over the tokens at the queried positions.

    With `where` (B, L) bool, a prediction holds those M positions only, packed in row order (M, ...). Continuous tokens
    can only be sampled; discrete ones (`Categorical`) have probabilities too.
    """

    @property
    def where(self) -> Tensor | None: ...

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor: ...


class Denoiser(Protocol):
    """A network of discrete tokens, or any function with this signature.

    It may ignore `where` and return logits of all positions: callers select (`categorical_at`).
    """

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical | Tensor:
        """x_t (B, L) int64, t (B,) -> logits (B, L, V), or (M, V) at the M positions of `where` (B, L) bool."""


class FieldDenoiser(Protocol):
    """The network of a Gaussian process: continuous tokens x_t (B, L, D) -> `Field`."""

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Field:
        """With `subset`, only kept tokens are computed."""


class DenoiseField(Protocol):
    """A field denoiser with condition and guidance bound."""

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:
        """x_t (B, L, D), t (B,) on the CPU in float64."""


class Denoise(Protocol):
    """A denoiser with condition and guidance bound: the network as a sampler calls it."""

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Prediction | Tensor:
        """x_t (B, L), or (B, L, D) with NaN for [MASK]; t (B,) on the CPU in float64. A tensor is logits."""


@dataclass(frozen=True)
class Categorical:
    """Independent categorical distributions over V tokens.

    Attributes:
        logits: (B, L, V), or (M, V) for the M positions where `where` (B, L) is True. [MASK] has no column: it cannot
            be predicted.
        where: (B, L) bool; None for all positions.
        difficulty: shape of `logits` without V, orders positions by their expected loss; None without such a head.
        vectors: (2, B, P), projections of two views of each image, for a contrastive term; None without it.
    """

    logits: Tensor
    where: Tensor | None = None
    difficulty: Tensor | None = None
    vectors: Tensor | None = None

    def guide(self, null: Categorical, scale: Tensor | float) -> Categorical:
        """null + scale (self - null): classifier-free guidance on logits; scale, a number or (B,), 1 is off."""
        if isinstance(scale, Tensor):
            scale = over_positions(scale.to(self.logits), self.where, self.logits.shape[:-1])[..., None]
        # Written from the conditional side, so that scale 1 is exact to the last bit.
        return Categorical(self.logits + (scale - 1) * (self.logits - null.logits), self.where)

    def halves(self) -> tuple[Categorical, Categorical]:
        """Split the output of two joined batches with equal `where` into those of the first and the second."""
        first, second = self.logits.chunk(2)
        if self.where is None:
            return Categorical(first), Categorical(second)
        above, below = self.where.chunk(2)
        return Categorical(first, above), Categorical(second, below)

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        """Sample tokens, (B, L) or (M,) int64; the mode at temperature 0.

        By inverse cumulative distribution in float64: float32 Gumbel noise truncates the tail, which silently lowers
        the temperature (arXiv 2409.02908).
        """
        if temperature == 0:
            return self.logits.argmax(-1)
        # One float64 uniform per position, drawn for all positions: the random stream does not depend on `where`.
        shape = self.logits.shape[:-1] if self.where is None else self.where.shape
        uniform = rng.uniform(shape, device=self.logits.device)
        if self.where is not None:
            uniform = uniform[self.where]
        cumulative = torch.softmax(self.logits.double() / temperature, -1).cumsum(-1)
        target = uniform[..., None] * cumulative[..., -1:]
        return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=self.logits.shape[-1] - 1)

    def nucleus(self, top_p: float, temperature: float = 1.0, crossing: Crossing = "include") -> Categorical:
        """Only the likeliest tokens that together hold `top_p` of the probability at this temperature.

        The others get logit -inf; kept tokens keep their logit (arXiv 1904.09751). The token that crosses `top_p` is
        included, or excluded unless it is the first (ReMDM).
        """
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 = off, got {top_p}")
        if top_p == 1 or temperature == 0:
            return self
        p, order = torch.softmax(self.logits.double() / temperature, -1).sort(stable=True, dim=-1, descending=True)
        is_late = p.cumsum(-1) - p >= top_p
        if crossing == "exclude":
            is_late = p.cumsum(-1) > top_p + 1e-12  # probabilities that sum to top_p are within it
            is_late[..., 0] = False
        is_outside = torch.empty_like(is_late).scatter(-1, order, is_late)
        return Categorical(self.logits.masked_fill(is_outside, -torch.inf), self.where)

    def likeliest(self, top_k: int) -> Categorical:
        """Only the `top_k` likeliest tokens and those as likely as the last of them; 0 keeps all."""
        if not 0 < top_k < self.logits.shape[-1]:
            return self
        least = self.logits.topk(top_k, -1).values[..., -1:]
        return Categorical(self.logits.masked_fill(self.logits < least, -torch.inf), self.where)

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


NO_SPREAD = "temperature must be 1: this network predicts one value per token and samples nothing"


@dataclass(frozen=True)
class Point:
    """A point estimate of each continuous token: the prediction of a regression (MAE).

    `value` is (B, L, D), or (M, D) for the M positions where `where` (B, L) is True. `difficulty` is that of
    `Categorical`.
    """

    value: Tensor
    where: Tensor | None = None
    difficulty: Tensor | None = None

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:  # noqa: ARG002 - one signature for all predictions
        """The value itself.

        Raises:
            UserError: a temperature other than 1.
        """
        if temperature != 1:
            raise UserError(NO_SPREAD)
        return self.value


@dataclass(frozen=True)
class Field:
    """Output of the network of a Gaussian process.

    Attributes:
        value: F (B, L, D), in the units of the process's target; (B, K, D) for kept tokens only.
        variance: position of the reverse step's variance between its bounds, 1 is the upper and -1 the lower (learned
            range, arXiv 2102.09672), shape of `value`; None if it is not learned.
        subset: the K kept tokens, None for all.
    """

    value: Tensor
    variance: Tensor | None = None
    subset: TokenSubset | None = None

    def guide(self, null: Field, scale: Tensor | float, width: int | None = None) -> Field:
        """null + scale (self - null) in the first `width` numbers of each token, by default all D.

        Scale is a number or (B,). All other numbers, and the variance, are the conditional ones.
        """
        if isinstance(scale, Tensor):
            scale = scale.to(self.value)[:, None, None]
        value = self.value + (scale - 1) * (self.value - null.value)
        if width is not None:
            value = torch.cat([value[..., :width], self.value[..., width:]], -1)
        return replace(self, value=value)

    def halves(self) -> tuple[Field, Field]:
        """Split the field of two joined batches, of all tokens, into those of the first and the second."""
        first, second = self.value.chunk(2)
        if self.variance is None:
            return Field(first), Field(second)
        above, below = self.variance.chunk(2)
        return Field(first, above), Field(second, below)
