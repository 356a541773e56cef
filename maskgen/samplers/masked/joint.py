"""Joint draws: whether a token is revealed, and its value, in one draw. The sampler of per-token schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers.masked.unmasking import UNMASKINGS, Clock, Move, Unmasking, require_moving
from maskgen.schedules import Linear, Schedule


@dataclass(frozen=True, eq=False)
class PerToken(Schedule):
    """alpha_v = 1 - t^w_v, one exponent w_v per token of the vocabulary (GenMD4, arXiv 2406.04329).

    Unlike other schedules: t (B,) -> (B, V).

    Args:
        exponents: w (V,), all positive.
    """

    exponents: Tensor

    def __post_init__(self) -> None:
        if self.exponents.ndim != 1 or not bool((self.exponents > 0).all()):
            raise ValueError(f"exponents must be (V,) and positive, got {tuple(self.exponents.shape)}")

    def mask_ratio(self, t: Tensor) -> Tensor:
        return t.to(self._w)[:, None] ** self._w

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.mask_ratio(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self._w * t.to(self._w)[:, None] ** (self._w - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        """alpha (B, V) -> (B, V), the time of each."""
        return (1 - alpha) ** (1 / self._w)

    @property
    def _w(self) -> Tensor:
        return self.exponents.detach().double()


@UNMASKINGS.register("joint")
@dataclass(frozen=True)
class Joint(Unmasking):
    """Each masked position draws token v with probability mu_v chance_v, else it stays masked.

    chance_v = (alpha_s,v - alpha_t,v) / (1 - alpha_t,v). With one schedule for all tokens this is the law of
    `Bernoulli` in random order, in one stage; with `PerToken` it is the reverse process of GenMD4. The draw decides
    count and positions, so the order is not used, and no token can be masked again.
    """

    needs_prediction: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        require_moving(self.schedule)

    def count(self, move: Move, rng: Rng) -> Tensor:  # noqa: ARG002
        """(B,) int64, all tokens left: each may be revealed."""
        return move.clock.n_left

    def draw(self, prediction: Categorical, clock: Clock, s: Tensor, temperature: float, rng: Rng) -> Tensor:
        """(M,) int64, a token for each position of the prediction, V if it stays masked.

        By inverse cumulative distribution in float64. In the last step all are revealed.
        """
        where, logits = prediction.where, prediction.logits.double()
        assert where is not None
        if temperature == 0:
            mass = F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
        else:
            mass = torch.softmax(logits / temperature, -1)
        uniform = rng.uniform(where.shape, device=where.device)[where]
        if not clock.is_last:
            row = torch.arange(len(where), device=where.device)[:, None].expand(where.shape)[where]
            mass = mass * self._chance(clock.t, s).to(mass)[row]
        cumulative = mass.cumsum(-1)
        if clock.is_last:
            uniform = uniform * cumulative[..., -1]  # below the end, which rounding may have put below 1
        return torch.searchsorted(cumulative, uniform[..., None], right=True)[..., 0]

    def _chance(self, t: Tensor, s: Tensor) -> Tensor:
        """(B, 1), or (B, V) if alpha is."""
        before, after = self.schedule.mask_ratio(t), self.schedule.mask_ratio(s)
        chance = 1 - after / before.clamp(min=1e-300)  # t^w of a rare token may be 0
        return chance if chance.ndim == 2 else chance[:, None]
